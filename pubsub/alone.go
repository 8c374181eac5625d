package pubsub

import (
	"context"
	"errors"
	"log/slog"
)

// Alone is the hub of a broker without other nodes, for programs and tests that
// embed one broker.
func Alone(logger *slog.Logger) (*Hub, error) {
	return New(logger, nil, Config{Self: "alone.00000001", Epoch: 1}, nobody{})
}

// nobody is the way to other nodes where there are none.
type nobody struct{}

func (nobody) Peers() []string       { return nil }
func (nobody) Connected(string) bool { return false }
func (nobody) Call(context.Context, string, int, []byte) ([]byte, error) {
	return nil, errors.New("there is no other node")
}
