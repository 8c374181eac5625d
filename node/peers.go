package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// The application's kinds of frames between nodes.
const (
	frameBlock     = mux.KindApplication + 0 // a block for the leader of a shard
	frameAsk       = mux.KindApplication + 1 // a question about shards
	streamSegments = mux.KindApplication + 2 // store segments a replica lacks
	frameSession   = mux.KindApplication + 4 // session operations for the leader of a shard
	frameMeta      = mux.KindUrgent + 0      // a request to the meta group
	frameAnomaly   = mux.KindUrgent + 1      // anomaly events, one way
	frameRefused   = mux.KindUrgent + 2      // how many messages a node has refused
	frameDelivered = mux.KindUrgent + 10     // an alert of a model has reached the receiver, one way
	frameBacklog   = mux.KindUrgent + 9      // what of a node waits for the store
)

// asksMax bounds the questions a node answers at once for its peers; each may
// read the store.
const asksMax = 64

// peers is the mux as shard, meta and the event feed want it.
type peers struct {
	*mux.Mux
	full    func() bool // the log has no room for entries
	asks    chan struct{}
	running sync.WaitGroup

	mu     sync.Mutex
	groups []*mux.Transport // of every group opened so far
}

func (p *peers) gateAppend(*raft.AppendEntriesRequest) error {
	if p.full() {
		return errLogFull
	}
	return nil
}

// OnSnapshot implements shard.SnapshotNotifier.
func (p *peers) OnSnapshot(group uint32, offered func(*raft.InstallSnapshotRequest) bool, installed func(*raft.InstallSnapshotRequest)) {
	p.Mux.Group(group).SetGate(mux.Gate{Append: p.gateAppend, Known: offered, Installed: installed})
}

// interrupt makes replication give up on peers that are away, so that raft
// groups can be closed; it comes before closing any.
func (p *peers) interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.groups {
		t.Interrupt()
	}
}

func newPeers(m *mux.Mux, full func() bool) *peers {
	return &peers{Mux: m, full: full, asks: make(chan struct{}, asksMax)}
}

var errLogFull = errors.New("the log has no room for entries")

// Group implements shard.Transport. A full log refuses entries before raft sees
// them, because raft deletes a conflicting suffix before it finds out.
func (p *peers) Group(group, incarnation uint32) raft.Transport {
	t := p.GroupAs(group, incarnation)
	t.SetGate(mux.Gate{Append: p.gateAppend})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.groups = append(p.groups, t)
	return t
}

// Propose implements shard.Caller.
func (p *peers) Propose(peer string, group uint32, block []byte, done func([]byte, error)) {
	p.Go(peer, frameBlock, group, block, done)
}

// Submit implements shard.Caller.
func (p *peers) Submit(peer string, group uint32, batch []byte, done func([]byte, error)) {
	p.Go(peer, frameSession, group, batch, done)
}

// Ask implements shard.Caller.
func (p *peers) Ask(ctx context.Context, peer string, group uint32, question []byte) ([]byte, error) {
	return p.Call(ctx, peer, frameAsk, group, question)
}

// Forward implements meta.Forwarder.
func (p *peers) Forward(ctx context.Context, peer string, body []byte) ([]byte, error) {
	return p.Call(ctx, peer, frameMeta, meta.Group, body)
}

// serveShards answers other nodes' blocks and questions from host until ctx
// ends.
func (p *peers) serveShards(ctx context.Context, host *shard.Host) {
	p.Handle(frameBlock, func(_ string, group uint32, block []byte, reply func([]byte, error)) {
		host.Accept(group, block, func(b []byte) { reply(b, nil) })
	})
	p.Handle(frameSession, func(_ string, group uint32, batch []byte, reply func([]byte, error)) {
		host.AcceptSession(group, batch, func(b []byte) { reply(b, nil) })
	})
	p.Handle(frameAsk, func(_ string, group uint32, question []byte, reply func([]byte, error)) {
		if answer, ok := host.AnswerAtOnce(group, question); ok {
			reply(answer, nil)
			return
		}
		select {
		case p.asks <- struct{}{}:
		default:
			reply(nil, mux.ErrBusy)
			return
		}
		p.running.Go(func() {
			defer func() { <-p.asks }()
			reply(host.Answer(ctx, group, question), nil)
		})
	})
}

// anomalyFeed tells every node of the anomaly events of shards led here.
type anomalyFeed struct {
	logger *slog.Logger
	peers  *peers
	others func() []string
	local  func([]shard.Event)
	led    func([]shard.Event) // only those of shards led here
	expect func([]shard.Event) // told of them before they wait; nil is nobody
	queue  chan []shard.Event
}

// feedQueueMax bounds the batches of events that wait to be sent; beyond it they
// are dropped from the live feed (the lists have them all).
const feedQueueMax = 1024

func newAnomalyFeed(logger *slog.Logger, p *peers, others func() []string, local, led func([]shard.Event)) *anomalyFeed {
	return &anomalyFeed{logger: logger, peers: p, others: others, local: local, led: led, queue: make(chan []shard.Event, feedQueueMax)}
}

// emit implements shard.Deps.Emit: it never blocks.
func (f *anomalyFeed) emit(events []shard.Event) {
	if f.expect != nil {
		f.expect(events)
	}
	select {
	case f.queue <- events:
	default:
		f.logger.Warn("anomaly events dropped from the live feed, the lists have them", "events", len(events))
	}
}

func (f *anomalyFeed) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case events := <-f.queue:
			f.led(events)
			if events = firstTold(events); len(events) == 0 {
				continue
			}
			f.local(events)
			b, err := json.Marshal(events)
			if err != nil {
				f.logger.Error("encode anomaly events", "err", err)
				continue
			}
			for _, peer := range f.others() {
				if err := f.peers.Send(peer, frameAnomaly, 0, b); err != nil {
					f.logger.Debug("anomaly events not sent", "peer", peer, "err", err)
				}
			}
		}
	}
}

// firstTold leaves out what a new leader tells again, but for a shard's part of a
// wave, which any node may have to tell.
func firstTold(events []shard.Event) []shard.Event {
	return slices.DeleteFunc(events, func(e shard.Event) bool { return e.Repeat && !shard.IsWave(&e.Anomaly) })
}

// surgeDelivered is the content of a frameDelivered.
type surgeDelivered struct {
	Device string        `json:"device"`
	Kind   api.EventKind `json:"kind"`
}

// delivered tells the other nodes that an alert of a model has reached the
// receiver.
func (f *anomalyFeed) delivered(device string, kind api.EventKind) {
	b, err := json.Marshal(surgeDelivered{device, kind})
	if err != nil {
		f.logger.Error("encode delivery of an alert", "err", err)
		return
	}
	for _, peer := range f.others() {
		if err := f.peers.Send(peer, frameDelivered, 0, b); err != nil {
			f.logger.Debug("delivery of an alert not told", "peer", peer, "err", err)
		}
	}
}

// receive takes the events of other nodes, and gives on what they have delivered.
func (f *anomalyFeed) receive(delivered func(device string, kind api.EventKind)) {
	f.peers.Handle(frameDelivered, func(from string, _ uint32, body []byte, reply func([]byte, error)) {
		var d surgeDelivered
		if err := json.Unmarshal(body, &d); err != nil {
			f.logger.Warn("delivery of an alert cannot be read", "peer", from, "err", err)
		} else {
			delivered(d.Device, d.Kind)
		}
		reply(nil, nil)
	})
	f.peers.Handle(frameAnomaly, func(from string, _ uint32, body []byte, reply func([]byte, error)) {
		var events []shard.Event
		if err := json.Unmarshal(body, &events); err != nil {
			f.logger.Warn("anomaly events of a peer cannot be read", "peer", from, "err", err)
		}
		f.local(events)
		reply(nil, nil)
	})
}

// directory is the meta state as the router wants it.
type directory struct{ meta *meta.Meta }

func (d directory) Shards() uint32 { return d.meta.State().Shards }

func (d directory) Replicas(id telemetry.ShardID) []string {
	st := d.meta.State()
	if int(id) >= len(st.Table) {
		return nil
	}
	nodes := st.Table[id].Replicas
	if m, moving := st.Moves[id]; moving && m.To != "" {
		nodes = append(slices.Clone(nodes), m.To)
	}
	return peersOf(st, nodes)
}

func (d directory) Peers() []string {
	st := d.meta.State()
	out := make([]string, 0, len(st.Nodes))
	for _, n := range st.Nodes {
		out = append(out, n.Peer())
	}
	return out
}

func peersOf(st *meta.State, nodes []telemetry.NodeID) []string {
	out := make([]string, 0, len(nodes))
	for _, id := range nodes {
		if n, ok := st.Nodes[id]; ok {
			out = append(out, n.Peer())
		}
	}
	return out
}
