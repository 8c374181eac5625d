package broker

import (
	"testing"

	"github.com/sluice-iot/sluice/pubsub"
)

// alone is the cluster of a single node.
func alone(t testing.TB) *pubsub.Hub {
	t.Helper()
	h, err := pubsub.Alone(quietLog)
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
