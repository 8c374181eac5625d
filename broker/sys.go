package broker

import (
	"strconv"
	"strings"
	"time"
)

// sysMessages are the node's figures under $SYS/broker that match filter. They are
// sent once, when somebody subscribes; /metrics is the place to watch them.
func (b *Broker) sysMessages(filter string) []*message {
	stats := b.Stats()
	figures := []struct{ topic, value string }{
		{"$SYS/broker/uptime", strconv.FormatInt(int64(time.Since(b.started)/time.Second), 10) + " seconds"},
		{"$SYS/broker/clients/connected", strconv.Itoa(stats.Connections)},
		{"$SYS/broker/clients/total", strconv.Itoa(stats.Sessions)},
		{"$SYS/broker/subscriptions/count", strconv.Itoa(stats.Subscriptions)},
		{"$SYS/broker/retained messages/count", strconv.Itoa(stats.Retained)},
		{"$SYS/broker/publish/messages/inflight", strconv.Itoa(stats.InFlight)},
		{"$SYS/broker/publish/messages/acknowledged", strconv.FormatInt(stats.Acknowledged, 10)},
	}
	var out []*message
	for _, f := range figures {
		if matches(filter, f.topic) {
			out = append(out, &message{topic: f.topic, payload: []byte(f.value), retain: true})
		}
	}
	return out
}

// matches reports whether a valid filter matches topic.
func matches(filter, topic string) bool {
	for {
		f, fRest, fMore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, tRest, tMore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !fMore && !tMore {
			return true
		}
		if !tMore {
			return fRest == "#"
		}
		if !fMore {
			return false
		}
		filter, topic = fRest, tRest
	}
}
