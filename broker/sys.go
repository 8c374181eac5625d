package broker

import (
	"strconv"
	"time"

	"github.com/sluice-iot/sluice/session"
)

// sysMessages are the node's figures under $SYS/broker that match filter. They are
// sent once, when somebody subscribes; /metrics is the place to watch them.
func (b *Broker) sysMessages(filter string) []*session.Message {
	stats := b.Stats()
	figures := []struct{ topic, value string }{
		{"$SYS/broker/uptime", strconv.FormatInt(int64(time.Since(b.started)/time.Second), 10) + " seconds"},
		{"$SYS/broker/clients/connected", strconv.Itoa(stats.Connections)},
		{"$SYS/broker/clients/total", strconv.Itoa(stats.Sessions)},
		{"$SYS/broker/subscriptions/count", strconv.Itoa(stats.Subscriptions)},
		{"$SYS/broker/publish/messages/inflight", strconv.Itoa(stats.InFlight)},
		{"$SYS/broker/publish/messages/acknowledged", strconv.FormatInt(stats.Acknowledged, 10)},
	}
	var out []*session.Message
	for _, f := range figures {
		if session.Matches(filter, f.topic) {
			out = append(out, &session.Message{Topic: f.topic, Payload: []byte(f.value), Retain: true})
		}
	}
	return out
}
