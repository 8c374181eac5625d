package pubsub

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// claim is a CONNECT on its way to the shard of its session. Somebody waits for it, or
// has left it to late.
type claim struct {
	ready chan result // holds one

	mu   sync.Mutex
	late func(result)
}

func (c *claim) done(answer session.Answer, err error) {
	r := result{answer, err}
	c.mu.Lock()
	late := c.late
	if late == nil {
		c.ready <- r
	}
	c.mu.Unlock()
	if late != nil {
		late(r)
	}
}

// leaveTo gives the outcome to late, which is called at once if it has come meanwhile.
func (c *claim) leaveTo(late func(result)) {
	c.mu.Lock()
	c.late = late
	c.mu.Unlock()
	select {
	case r := <-c.ready:
		late(r)
	default:
	}
}

// connected is what the shard says of a session that was taken.
func (r *result) connected() (session.Connected, error) {
	if r.err != nil {
		return session.Connected{}, r.err
	}
	if err := r.answer.Status.Err(); err != nil {
		return session.Connected{}, err
	}
	return session.DecodeConnected(r.answer.Body)
}

// Connect takes a session for a connection of this node, and tells the node that
// had it; that is waited for, but not long. session.ErrElsewhere says that another node reaches
// the shard and this one does not. When ctx ends first, the outcome is given
// to late when it comes, on a goroutine of its own, once; without one the session is
// given back.
func (h *Hub) Connect(ctx context.Context, c session.Connect, late func(session.Connected, error)) (session.Connected, error) {
	c.Node, c.NodeEpoch = h.cfg.Self, h.cfg.Epoch
	id := h.ShardOf(c.Client)
	if h.routes.lost(id, time.Now()) {
		return session.Connected{}, session.ErrElsewhere
	}
	mine := &claim{ready: make(chan result, 1)}
	came := time.Now()
	h.queue(ofSessions, id, operation{body: c.Append(nil), done: mine.done, now: func() []byte {
		sent := c
		sent.Waited = time.Since(came).Microseconds()
		return sent.Append(nil)
	}})
	r, err := h.awaitClaim(ctx, id, mine)
	if err == nil {
		return h.taken(ctx, &c, &r)
	}
	if late == nil || errors.Is(err, session.ErrElsewhere) {
		late = func(got session.Connected, err error) {
			if err == nil {
				h.submit(id, session.AppendDisconnect(nil, session.Ref{Client: c.Client, Epoch: got.Epoch}, false, 0, c.Expiry, got.Sent), nil)
			}
		}
	}
	mine.leaveTo(func(r result) {
		h.spawn(func() { late(h.taken(h.ctx, &c, &r)) }) // too late at all when the hub has ended
	})
	return session.Connected{}, fmt.Errorf("wait for the shard of the session: %w", err)
}

// awaitClaim waits for the shard, unless it is another node's to reach.
func (h *Hub) awaitClaim(ctx context.Context, id telemetry.ShardID, mine *claim) (result, error) {
	look := time.NewTicker(strayLook)
	defer look.Stop()
	for {
		select {
		case r := <-mine.ready:
			return r, nil
		case <-ctx.Done():
			if h.routes.astray(id, time.Now()) {
				return result{}, session.ErrElsewhere
			}
			return result{}, ctx.Err()
		case now := <-look.C:
			if h.routes.lost(id, now) {
				return result{}, session.ErrElsewhere
			}
		}
	}
}

// taken reads the outcome of a CONNECT, and tells the node that had the session.
func (h *Hub) taken(ctx context.Context, c *session.Connect, r *result) (session.Connected, error) {
	got, err := r.connected()
	if err == nil && got.Node != "" && got.Node != h.cfg.Self {
		h.kick(ctx, got.Node, session.Ref{Client: c.Client, Epoch: got.Before})
	}
	return got, err
}
