package broker

import (
	"context"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/pubsub"
)

// nobody is the way to other nodes of a cluster that has none.
type nobody struct{}

func (nobody) Peers() []string       { return nil }
func (nobody) Connected(string) bool { return false }
func (nobody) Call(context.Context, string, int, []byte) ([]byte, error) {
	return nil, errors.New("there is no other node")
}

// alone is the cluster of a single node.
func alone(t testing.TB) *pubsub.Hub {
	t.Helper()
	h, err := pubsub.New(quietLog, prometheus.NewRegistry(), pubsub.Config{Self: "n0.00000001", Epoch: 1}, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}
