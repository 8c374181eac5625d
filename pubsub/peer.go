package pubsub

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/internal/precedence"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
)

// peer is what the hub has to do with one other node.
type peer struct {
	hub  *Hub
	id   string
	ctx  context.Context // ends when the peer leaves the cluster or the hub closes
	stop context.CancelFunc

	synced atomic.Bool // its announcements have been here completely
	away   atomic.Bool // not reachable for longer than awayAfter
	seq    uint64      // of the last frame sent; owned by send

	mu     sync.Mutex
	outbox precedence.Queue[[]byte] // encoded pieces
	some   chan struct{}
	in     chan inbound

	heardEpoch, heardSeq uint64 // of the last frame received; owned by receive
}

type inbound struct {
	body  []byte
	reply func([]byte, error)
}

func newPeer(h *Hub, id string) *peer {
	p := &peer{hub: h, id: id, some: make(chan struct{}, 1)}
	p.ctx, p.stop = context.WithCancel(h.ctx)
	return p
}

// pull keeps this node's copy of the peer's announcements: one request after the
// other, each held by the peer until there is news.
func (p *peer) pull() {
	for p.ctx.Err() == nil {
		if !p.pullOnce() {
			select {
			case <-p.ctx.Done():
			case <-time.After(pullRetry):
			}
		}
	}
}

func (p *peer) pullOnce() bool {
	if !p.hub.net.Connected(p.id) {
		return false
	}
	marks := p.hub.routes.marks()
	body := wire.AppendUint(wire.AppendUint([]byte{pullVersion}, p.hub.cfg.Epoch), uint64(len(marks)))
	for id, m := range marks {
		body = wire.AppendUint(wire.AppendUint(wire.AppendString(body, id), m.gen), m.ver)
	}
	ctx, cancel := context.WithTimeout(p.ctx, pullTimeout)
	defer cancel()
	asked := time.Now()
	news, err := p.hub.net.Call(ctx, p.id, FramePull, body)
	if err != nil {
		return false
	}
	complete, seen, err := p.hub.routes.decodeNews(news, asked.Add(leaseMax))
	if err != nil {
		p.hub.log.Warn("news of a peer's subscriptions cannot be read", "peer", p.id, "err", err)
		return false
	}
	p.away.Store(false)
	p.hub.missed(seen)
	if complete {
		p.synced.Store(true)
	}
	return true
}

// AcceptPull answers another node's FramePull; it never blocks.
func (h *Hub) AcceptPull(from string, body []byte, reply func([]byte, error)) {
	r := wire.NewReader(body)
	if v := r.Byte(); v != pullVersion {
		reply(nil, errVersion(v))
		return
	}
	p := &pull{peer: from, epoch: r.Uint(), known: map[string]mark{}, until: time.Now().Add(pullHold), reply: func(b []byte) { reply(b, nil) }}
	for range r.Count(3) {
		id := r.String()
		p.known[id] = mark{r.Uint(), r.Uint()}
	}
	if r.Err() != nil {
		reply(nil, r.Err())
		return
	}
	h.board.take(p)
}

// The kinds of pieces of a forwarded frame.
const (
	pieceMessage = 1 // for whoever has subscribed
	pieceQueued  = 2 // what is queued for one client
)

// forward queues m for the clients of the peer; print is the fingerprint of a publish
// of QoS 2.
func (p *peer) forward(m *session.Message, groups []string, print uint64) {
	b := make([]byte, 0, m.Bytes()+26)
	b = wire.AppendUint(m.Append(append(b, pieceMessage)), uint64(len(groups)))
	for _, g := range groups {
		b = wire.AppendString(b, g)
	}
	b = wire.AppendUint(b, print)
	if p.post(b, m.Urgent()) {
		p.hub.metrics.forwarded.Inc()
	} else {
		p.hub.metrics.dropped.WithLabelValues("outbox_full").Inc()
	}
}

// post queues a piece; false when too much waits for the peer.
func (p *peer) post(b []byte, urgent bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.outbox.Push(b, len(b), urgent, p.hub.cfg.OutboxBytesMax) {
		return false
	}
	select {
	case p.some <- struct{}{}:
	default:
	}
	return true
}

// send takes what has gathered to the peer, one frame after the other: the answer
// to one is what lets the next go, so that a slow peer fills the outbox and not
// the connection that raft shares.
func (p *peer) send() {
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.some:
		}
		for {
			batch, n := p.take()
			if n == 0 {
				break
			}
			if !p.deliver(batch) {
				p.hub.metrics.dropped.WithLabelValues("peer_away").Add(float64(n))
			}
		}
	}
}

// take takes as many messages as fit into a frame, the urgent ones first.
func (p *peer) take() ([]byte, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var pieces [][]byte
	size := 0
	for next, ok := p.outbox.Next(); ok && (size == 0 || size+next <= frameBytesMax); next, ok = p.outbox.Next() {
		size += next
		pieces = append(pieces, p.outbox.Pop())
	}
	if len(pieces) == 0 {
		return nil, 0
	}
	p.seq++
	batch := make([]byte, 0, size+frameHeadMax)
	batch = wire.AppendUint(wire.AppendUint(append(batch, forwardVersion), p.hub.cfg.Epoch), p.seq)
	batch = wire.AppendUint(batch, uint64(len(pieces)))
	for _, b := range pieces {
		batch = append(batch, b...)
	}
	return batch, len(pieces)
}

// frameHeadMax is the most that stands in front of the pieces of a frame.
const frameHeadMax = 1 + 3*binary.MaxVarintLen64

// deliver sends one frame until it has arrived, which the receiver tells from its
// number; it gives up on a peer that stays away.
func (p *peer) deliver(batch []byte) bool {
	seen := time.Now()
	for p.ctx.Err() == nil {
		if p.hub.net.Connected(p.id) {
			seen = time.Now()
			answer, err := p.hub.net.Call(p.ctx, p.id, FrameForward, batch)
			if err == nil && len(answer) == 0 {
				return true
			}
		} else if time.Since(seen) > awayAfter {
			p.away.Store(true)
			return false
		}
		select {
		case <-p.ctx.Done():
		case <-time.After(forwardRetry):
		}
	}
	return false
}

// awayAfter is how long a peer may be out of reach before messages for its clients
// are dropped: a broken connection is made again much sooner.
const awayAfter = 2 * time.Second

// forwardRetry is the pause before a busy peer is sent to again.
const forwardRetry = 5 * time.Millisecond

// AcceptForward takes messages of another node for clients of this one; the answer
// is empty when they have been delivered. It never blocks.
func (h *Hub) AcceptForward(from string, body []byte, reply func([]byte, error)) {
	p := h.peer(from)
	if p == nil || !p.begin(body, reply) {
		reply([]byte{1}, nil)
	}
}

// begin hands a frame to a goroutine of its own: delivering may take longer than
// the reader of the connection may wait. One at a time keeps the order.
func (p *peer) begin(body []byte, reply func([]byte, error)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.in == nil {
		p.in = make(chan inbound, 2)
		p.hub.mu.Lock()
		defer p.hub.mu.Unlock()
		if p.hub.stopped {
			return false
		}
		p.hub.done.Go(p.receive)
	}
	select {
	case p.in <- inbound{body, reply}:
		return true
	default:
		return false
	}
}

func (p *peer) receive() {
	for {
		select {
		case <-p.ctx.Done():
			return
		case f := <-p.in:
			if err := p.deliverFrame(f.body); err != nil {
				p.hub.log.Warn("messages of a peer cannot be read", "peer", p.id, "err", err)
				p.hub.metrics.dropped.WithLabelValues("malformed").Inc()
			}
			f.reply(nil, nil) // sent again it would be no better
		}
	}
}

func (p *peer) deliverFrame(body []byte) error {
	r := wire.NewReader(body)
	if v := r.Byte(); v != forwardVersion {
		return errVersion(v)
	}
	epoch, seq := r.Uint(), r.Uint()
	if epoch < p.heardEpoch || epoch == p.heardEpoch && seq <= p.heardSeq {
		return nil // a repeat: its first answer was lost
	}
	p.heardEpoch, p.heardSeq = epoch, seq
	for range r.Count(4) {
		if err := p.hub.deliverPiece(r); err != nil {
			return err
		}
	}
	return nil
}

func (h *Hub) deliverPiece(r *wire.Reader) error {
	switch kind := r.Byte(); kind {
	case pieceMessage:
		m := session.DecodeMessage(r)
		var groups []string
		for range r.Count(1) {
			groups = append(groups, r.String())
		}
		if print := r.Uint(); r.Err() == nil {
			h.handOver(m, groups, print)
		}
	case pieceQueued:
		ref, last := session.Ref{Client: r.String(), Epoch: r.Uint()}, r.Uint()
		items := session.DecodeItems(r)
		switch {
		case r.Err() != nil:
		case len(items) == 0:
			h.client().Queued(ref, nil, last)
		default:
			for i := range items {
				h.client().Queued(ref, &items[i], last)
			}
		}
	default:
		return fmt.Errorf("piece of kind %d is not known: upgrade this node", kind)
	}
	return r.Err()
}
