package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// Caller reaches other nodes.
type Caller interface {
	// Propose sends an entry to a peer's replica; done is called exactly once
	// with the answer of Host.Accept, or with an error after which the entry's
	// fate is unknown.
	Propose(peer string, group uint32, entry []byte, done func(answer []byte, err error))
	// Submit sends a batch of session operations to a peer's replica, like Propose;
	// the answer is Host.AcceptSession's.
	Submit(peer string, group uint32, batch []byte, done func(answer []byte, err error))
	// Ask sends a question to a peer and waits for the answer of Host.Answer.
	Ask(ctx context.Context, peer string, group uint32, question []byte) ([]byte, error)
	// Connected reports whether a peer can be reached right now.
	Connected(peer string) bool
}

// Directory tells where shards live.
type Directory interface {
	// Shards is the number of shards; 0 until the cluster is initialised.
	Shards() uint32
	// Replicas lists the peer ids of a shard's replicas.
	Replicas(telemetry.ShardID) []string
	// Peers lists the peer ids of all nodes.
	Peers() []string
}

// Router finds the leader of a shard from any node and asks it.
type Router struct {
	host   *Host
	caller Caller
	dir    Directory

	mu       sync.Mutex
	hints    map[telemetry.ShardID]string // leaders of shards without a replica here
	retained map[telemetry.ShardID]*retainedQueue

	underway underway
}

// NewRouter routes for the node of host.
func NewRouter(host *Host, caller Caller, dir Directory) *Router {
	r := &Router{host: host, caller: caller, dir: dir, hints: map[telemetry.ShardID]string{}, retained: map[telemetry.ShardID]*retainedQueue{}}
	r.underway.leader = r.known
	return r
}

// Leader is the peer that most probably leads a shard, "" when nobody is known.
func (r *Router) Leader(id telemetry.ShardID) string {
	if s, ok := r.host.Shard(id); ok {
		// A replica that is still to be built may not have heard of a leader.
		if leader := s.leader(); leader != "" || s.votes() {
			return leader
		}
	}
	r.mu.Lock()
	hint := r.hints[id]
	r.mu.Unlock()
	if hint != "" && r.caller.Connected(hint) {
		return hint
	}
	var up []string
	for _, p := range r.dir.Replicas(id) {
		if p != r.host.cfg.Self && r.caller.Connected(p) {
			up = append(up, p)
		}
	}
	if len(up) == 0 {
		return ""
	}
	return up[rand.IntN(len(up))]
}

func (r *Router) learn(id telemetry.ShardID, err error) {
	var nl *NotLeaderError
	if errors.As(err, &nl) {
		r.mu.Lock()
		r.hints[id] = nl.Leader
		r.mu.Unlock()
	}
}

// Propose sends an encoded block to its shard's leader. done is called exactly
// once: with the state machine's result, or with an error. After a
// NotLeaderError or ErrBusy the block has certainly not been taken; after any
// other error its fate is unknown until it is sent again.
func (r *Router) Propose(id telemetry.ShardID, entry []byte, done func(Result, error)) {
	leader := r.Leader(id)
	switch leader {
	case "":
		go done(Result{}, &NotLeaderError{Shard: id})
	case r.host.cfg.Self:
		s, _ := r.host.Shard(id)
		s.Propose(entry, func(v any, err error) { done(resultOf(v, err)) })
	default:
		r.caller.Propose(leader, GroupOf(id), entry, r.underway.follow(id, leader, func(answer []byte, err error) {
			res, err := decodeAccepted(id, answer, err)
			if err != nil {
				r.learn(id, err)
			}
			done(res, err)
		}))
	}
}

// Accept takes a block that another node forwards and replies with the encoded
// result. It never blocks.
func (h *Host) Accept(group uint32, entry []byte, reply func([]byte)) {
	s, ok := h.Shard(ShardOfGroup(group))
	if !ok {
		reply(appendAnswer(nil, nil, &NotLeaderError{Shard: ShardOfGroup(group)}))
		return
	}
	s.Propose(entry, func(v any, err error) {
		res, err := resultOf(v, err)
		if errors.Is(err, ErrBusy) {
			reply([]byte{answerBusy})
			return
		}
		reply(appendAnswer(nil, res.Append(nil), err))
	})
}

const answerBusy = 4

func resultOf(v any, err error) (Result, error) {
	if err != nil {
		return Result{}, err
	}
	res, ok := v.(Result)
	if !ok {
		return Result{}, fmt.Errorf("state machine answered a block with %T", v)
	}
	return res, nil
}

func decodeAccepted(id telemetry.ShardID, answer []byte, err error) (Result, error) {
	if err != nil {
		return Result{}, err
	}
	if len(answer) > 0 && answer[0] == answerBusy {
		return Result{}, ErrBusy
	}
	b, err := readAnswer(id, answer)
	if err != nil {
		return Result{}, err
	}
	r := wire.NewReader(b)
	res := DecodeResult(r)
	return res, r.Err()
}

// routeRetry is the pause before a leader is looked for again.
const routeRetry = 50 * time.Millisecond

// ask puts a question to the leader of a shard, looking for it until ctx ends.
func (r *Router) ask(ctx context.Context, id telemetry.ShardID, question []byte) ([]byte, error) {
	for {
		out, err := r.askOnce(ctx, id, question)
		var nl *NotLeaderError
		if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
			return out, err // the leader has spoken: its store may be away for hours
		}
		if errors.As(err, &nl) {
			r.learn(id, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("ask shard %d: %w: %w", id, err, store.ErrUnavailable)
		case <-time.After(routeRetry):
		}
	}
}

func (r *Router) askOnce(ctx context.Context, id telemetry.ShardID, question []byte) ([]byte, error) {
	leader := r.Leader(id)
	switch leader {
	case "":
		return nil, &NotLeaderError{Shard: id}
	case r.host.cfg.Self:
		return readAnswer(id, r.host.Answer(ctx, GroupOf(id), question))
	}
	answer, err := r.caller.Ask(ctx, leader, GroupOf(id), question)
	if err != nil {
		return nil, err
	}
	return readAnswer(id, answer)
}

// shardOf places a device; an uninitialised cluster has no shards.
func (r *Router) shardOf(device string) (telemetry.ShardID, error) {
	n := r.dir.Shards()
	if n == 0 {
		return 0, fmt.Errorf("the cluster is not initialised: %w", store.ErrUnavailable)
	}
	return telemetry.ShardOf(device, n), nil
}

// Readings answers for one device, flushed and unflushed rows as one.
func (r *Router) Readings(ctx context.Context, q store.Query) ([]store.Point, error) {
	id, err := r.shardOf(q.Device)
	if err != nil {
		return nil, err
	}
	b, err := r.ask(ctx, id, append([]byte{askReadings}, encodeQuery(&q)...))
	if err != nil {
		return nil, err
	}
	wr := wire.NewReader(b)
	points := decodePoints(wr)
	return points, wr.Err()
}

// Buckets answers for one device, flushed and unflushed rows as one.
func (r *Router) Buckets(ctx context.Context, q store.Aggregate) ([]store.Bucket, error) {
	id, err := r.shardOf(q.Device)
	if err != nil {
		return nil, err
	}
	b, err := r.ask(ctx, id, append([]byte{askBuckets}, encodeAggregate(&q)...))
	if err != nil {
		return nil, err
	}
	wr := wire.NewReader(b)
	buckets := decodeBuckets(wr)
	return buckets, wr.Err()
}

// Device describes one device.
func (r *Router) Device(ctx context.Context, device string) (Device, error) {
	var d Device
	id, err := r.shardOf(device)
	if err != nil {
		return d, err
	}
	b, err := r.ask(ctx, id, append([]byte{askDevice}, device...))
	if err != nil {
		return d, err
	}
	return d, json.Unmarshal(b, &d)
}

// RemoveQuarantined settles quarantined messages of one shard.
func (r *Router) RemoveQuarantined(ctx context.Context, id telemetry.ShardID, ids ...uint64) error {
	body, err := json.Marshal(listQuestion{Removed: ids})
	if err != nil {
		return err
	}
	_, err = r.ask(ctx, id, append([]byte{askRemove}, body...))
	return err
}

// AcceptLoss lets a shard go on whose database has lost rows that the log no
// longer has; ErrNotFound when it has lost none.
func (r *Router) AcceptLoss(ctx context.Context, id telemetry.ShardID) error {
	if uint32(id) >= r.dir.Shards() {
		return fmt.Errorf("shard %d: %w", id, ErrNotFound)
	}
	_, err := r.ask(ctx, id, []byte{askAccept})
	return err
}
