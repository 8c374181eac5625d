package broker

import (
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
)

var astray = []session.Astray{{Shard: 0, For: 2 * time.Second}} // the cluster of a single node has one

// TestAClientThatWaitsForAShardOfAnotherNodeIsSentThere, and nobody else.
func TestAClientThatWaitsForAShardOfAnotherNodeIsSentThere(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		b := start(t, Config{CommitDeadline: time.Hour}, m)
		waits, _ := dial(t, b, v, "waits", connectOptions{})
		answered, _ := dial(t, b, v, "answered", connectOptions{})
		idle, _ := dial(t, b, v, "idle", connectOptions{})
		answered.publish(pub{topic: "devices/b/telemetry", qos: 1, id: 1, payload: "{}"})
		m.next(t).apply()
		answered.expect(packets.Puback, 1)
		waits.publish(pub{topic: "devices/a/telemetry", qos: 1, id: 1, payload: "{}"})
		m.next(t)
		b.Strayed([]session.Astray{{Shard: 7, For: time.Minute}})
		waits.ping()
		eventually(t, "the publish has waited for long enough", func() bool {
			b.Strayed(astray)
			return len(b.all()) == 2
		})
		code := byte(0)
		if v == 5 {
			code = packets.ErrUseAnotherServer.Code
		}
		waits.closed(code)
		answered.ping()
		idle.ping()
	})
}

// TestADurableSessionDoesNotStayDeaf: when its shard has given the connection up, its
// client is sent to where it is heard.
func TestADurableSessionDoesNotStayDeaf(t *testing.T) {
	b := start(t, Config{}, newMemory())
	durable, _ := dial(t, b, 5, "durable", connectOptions{keep: true, props: []byte{packets.PropSessionExpiryInterval, 0, 0, 0, 60}})
	clean, _ := dial(t, b, 5, "clean", connectOptions{})
	b.Strayed(astray)
	durable.ping()
	b.Strayed([]session.Astray{{Shard: 0, For: strayDeaf}})
	durable.closed(packets.ErrUseAnotherServer.Code)
	clean.ping()
}
