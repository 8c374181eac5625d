package broker

import (
	"context"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/sluice-iot/sluice/telemetry"
)

// TestAcksCarryTokensWhenAsked asks by a user property, and does not.
func TestAcksCarryTokensWhenAsked(t *testing.T) {
	writes := []telemetry.Write{{Shard: 3, Index: 77}, {Shard: 9, Index: 5}}
	m := newMemory()
	m.auto = func(p telemetry.Publish, done func(telemetry.Result)) {
		r := telemetry.Result{Applied: 1}
		if p.Token {
			r.Writes = writes
		}
		done(r)
	}
	b := start(t, Config{ClusterID: "c1"}, m)
	c := pahoClient(t, b, "c1", nil)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ask := &paho.PublishProperties{User: paho.UserProperties{{Key: userWriteToken}}}
	for qos := byte(1); qos <= 2; qos++ {
		r, err := c.Publish(ctx, &paho.Publish{Topic: topic1, QoS: qos, Payload: []byte("{}"), Properties: ask})
		if err != nil || r.ReasonCode != 0 {
			t.Fatalf("QoS %d: %+v, %v", qos, r, err)
		}
		if qos == 1 && r.Properties.User.Get(userWriteToken) != telemetry.WriteToken("c1", writes) { // paho shows no properties of a PUBREC
			t.Errorf("the ack carries %+v", r.Properties)
		}
	}
	r, err := c.Publish(ctx, &paho.Publish{Topic: topic1, QoS: 1, Payload: []byte("{}")})
	if err != nil || r.Properties != nil && len(r.Properties.User) > 0 {
		t.Errorf("not asked for: %+v, %v", r, err)
	}
}

func TestTokensKeepToWhatTheClientTakes(t *testing.T) {
	writes := []telemetry.Write{{Shard: 3, Index: 77}}
	c := &conn{b: &Broker{}, version: 5, problemInfo: true}
	whole := c.appendTokenAck(nil, 4, 7, writes)
	c.packetMax = uint32(len(whole))
	if got := c.appendTokenAck(nil, 4, 7, writes); len(got) != len(whole) {
		t.Errorf("%d bytes where %d are allowed", len(got), len(whole))
	}
	c.packetMax--
	if got := c.appendTokenAck(nil, 4, 7, writes); string(got) != "\x40\x02\x00\x07" {
		t.Errorf("an ack of % x", got)
	}
}
