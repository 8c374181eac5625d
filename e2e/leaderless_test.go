package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/sluice-iot/sluice/devcluster"
)

// TestTheLastNodeServesCleanClients: two of three nodes are dead, so that no shard has a
// leader. A client that needs nothing of one connects and is served; one with a
// durable session is told why not; a publish waits, and is acknowledged when there is
// a quorum again, by which time the shards know the client that came in between.
func TestTheLastNodeServesCleanClients(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	for _, n := range nodes[1:] {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	sub := dialMQTT(t, nodes[0], mqttOptions{id: "panel", clean: true, brief: true})
	sub.subscribe("hall/+", 0)
	dev := dialMQTT(t, nodes[0], mqttOptions{id: "lamp", clean: true, brief: true})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := dev.Publish(ctx, &paho.Publish{Topic: "hall/lamp", Payload: []byte("on")}); err != nil {
		t.Fatal(err)
	}
	await(t, "a message goes from one to the other", func() bool { return slices.Contains(sub.received(), "on") })
	if _, err := tryMQTT(t, nodes[0], mqttOptions{id: "meter"}); err == nil || !strings.Contains(err.Error(), "0x88") {
		t.Errorf("a durable session without a quorum: %v, want 0x88", err)
	}
	acked := make(chan error, 1)
	go func() { acked <- publishUntilAcked(ctx, t, nodes[0]) }()
	time.Sleep(time.Second)
	select {
	case err := <-acked:
		t.Fatalf("acknowledged without a quorum: %v", err)
	default:
	}
	if err := nodes[1].Start(); err != nil {
		t.Fatal(err)
	}
	if err := <-acked; err != nil {
		t.Fatal(err)
	}
	later := dialMQTT(t, nodes[1], mqttOptions{id: "panel", clean: true, brief: true}) // takes the id over from the other node
	later.subscribe("hall/+", 0)
	select {
	case <-sub.Done():
	case <-ctx.Done():
		t.Fatal("the client that came without a quorum was not closed when its id was taken elsewhere")
	}
}

// publishUntilAcked sends one message of telemetry, again when the connection is closed
// over it, as a device does.
func publishUntilAcked(ctx context.Context, t *testing.T, n *devcluster.Node) error {
	for ctx.Err() == nil {
		c, err := tryMQTT(t, n, mqttOptions{id: "probe", clean: true, brief: true})
		if err != nil {
			continue
		}
		waiting, cancel := context.WithTimeout(ctx, 15*time.Second)
		_, err = c.Publish(waiting, &paho.Publish{Topic: "devices/probe/telemetry", QoS: 1, Payload: []byte(`{"timestamp":1800000000,"sensors":{"t":1}}`)})
		cancel()
		_ = c.conn.Close()
		if err == nil {
			return nil
		}
	}
	return errors.Join(errors.New("not acknowledged"), ctx.Err())
}
