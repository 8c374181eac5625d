package pubsub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Config is who this node is.
type Config struct {
	// Self is the peer id of this node.
	Self string
	// Epoch numbers the starts of this node; a later one is greater. Above zero.
	Epoch uint64
	// OutboxBytesMax bounds the messages that wait for one peer, default 16 MiB:
	// more means that the peer, or the way to it, does not keep up.
	OutboxBytesMax int
}

// Validate returns every problem at once.
func (c Config) Validate() error {
	var errs []error
	if c.Self == "" {
		errs = append(errs, errors.New("self: peer id is empty"))
	}
	if c.Epoch == 0 {
		errs = append(errs, errors.New("epoch is 0: number the starts of the node from 1"))
	}
	if c.OutboxBytesMax < 0 {
		errs = append(errs, fmt.Errorf("outbox bytes max is %d: must not be negative", c.OutboxBytesMax))
	}
	return errors.Join(errs...)
}

const (
	// leaseMax is how long a node may rely on an answer to its pull: several missed
	// pulls on a busy machine, and the longest wait of a SUBACK for a node that died.
	leaseMax = 3 * time.Second
	// leaseMargin is what the giver of a lease waits beyond it: a deposed leader may
	// believe in itself for a second, and clocks drift.
	leaseMargin = 1500 * time.Millisecond
	// pullHold is how long a pull waits for news. Thrice of it pass at most until a shard
	// is known to be astray (sight.go): before the detector of dead peers speaks.
	pullHold = 400 * time.Millisecond
	// pullTimeout ends a pull that nobody answers, pullRetry is the pause after it.
	pullTimeout = 2 * time.Second
	pullRetry   = 100 * time.Millisecond
	// beat is how often waiting pulls and publishes are looked at.
	beat = 50 * time.Millisecond
	// newsBytesMax bounds one answer to a pull; the rest follows in the next.
	newsBytesMax = 256 << 10
	// tombstonesMin is how many forgotten filters a source keeps at least.
	tombstonesMin = 1024
	// frameBytesMax is how much goes to a peer in one frame; a larger message goes alone.
	frameBytesMax = 256 << 10

	outboxBytesDefault = 16 << 20

	pullVersion    = 2
	forwardVersion = 2
	kickVersion    = 1
)

func errVersion(v byte) error {
	return fmt.Errorf("format version %d is not known: upgrade this node", v)
}

// The kinds of frames that a Net carries for the hub.
const (
	FramePull    = 0 // what has changed in your index since ...
	FrameForward = 1 // messages for the clients of a node
	FrameKick    = 2 // another node has taken the session of a client of yours
)

// Net is the way to other nodes.
type Net interface {
	// Peers lists the peer ids of all nodes of the cluster, this one included.
	Peers() []string
	// Connected reports whether a peer can be reached right now.
	Connected(peer string) bool
	// Call sends a frame of one of the kinds above and waits for the answer.
	Call(ctx context.Context, peer string, frame int, body []byte) ([]byte, error)
}

// Local is the broker of this node. None of its methods waits for a client.
type Local interface {
	// Deliver gives m to every connected client with a matching subscription, and
	// for each of the shared groups to one member.
	Deliver(m *session.Message, groups []string)
	// Queued tells a connected client's session of an item in its queue, or (nil)
	// only how far the queue goes.
	Queued(ref session.Ref, it *session.Item, last uint64)
	// Fence closes the connection of a session that has a later owner.
	Fence(ref session.Ref)
	// Will publishes the will of a client that is gone, telemetry included; done is
	// called exactly once.
	Will(client string, m *session.Message, done func(error))
	// Recheck attaches the clients whose sessions are in a shard again: it was out of
	// reach and may have given them up.
	Recheck(id telemetry.ShardID)
	// Strayed ends what waits here for shards that only other nodes reach; it is called
	// again and again while that is so.
	Strayed(list []session.Astray)
}
