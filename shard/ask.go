package shard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/fleet"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// The questions nodes ask each other, by the first byte of the body. Answers
// are JSON but for readings, which are many.
const (
	askReadings    = 'r'
	askBuckets     = 'b'
	askReached     = 'w' // does the log reach the index of a write
	askDevice      = 'd'
	askDevices     = 'D'
	askAnomalies   = 'a'
	askQuarantine  = 'q'
	askRemove      = 'Q'
	askAccept      = 'x'
	askStatus      = 's'
	askCounts      = 'l'
	askLeaders     = 'L'
	askDigests     = 'g'
	askAttributes  = 'p'
	askPut         = 'P'
	askApplied     = 'i' // an index that is applied: Put.Base
	askTerm        = 't' // of the replica's raft, the last index of its log, whether its disk is slow
	askMember      = 'm'
	askRebuild     = 'R' // incarnations of a peer's replica that are gone
	askWatch       = 'W' // an operator's word about anomalies
	askFetch       = 'f' // what is queued for a session
	askRetained    = 'e' // messages retained under filters
	askSettled     = 'y' // when all nodes know the durable subscriptions
	answerOK       = 0
	answerElse     = 1 // not the leader; the leader's peer id follows
	answerNotFound = 2
	answerError    = 3 // the text follows
)

// listQuestion asks a node for the part of a list that the shards led by it
// hold.
type listQuestion struct {
	After   string
	Limit   int
	Where   string // selects devices, see package fleet; "" is all
	Now     int64  // microseconds, what times before now in Where refer to
	Anomaly AnomalyFilter
	Removed []uint64
}

// listAnswer is that part, and which shards it covers.
type listAnswer struct {
	Shards     []telemetry.ShardID
	Devices    []Device                            `json:",omitempty"`
	Anomalies  []telemetry.Anomaly                 `json:",omitempty"`
	Quarantine map[telemetry.ShardID][]Quarantined `json:",omitempty"`
	Counts     map[telemetry.ShardID]Counts        `json:",omitempty"`
}

// Answer answers one question of another node (or of this one). It may wait for
// the store and for a quorum, so it runs on a goroutine of its own.
func (h *Host) Answer(ctx context.Context, group uint32, body []byte) []byte {
	if len(body) == 0 {
		return appendAnswer(nil, nil, errors.New("empty question"))
	}
	if out, ok := h.AnswerAtOnce(group, body); ok {
		return out
	}
	out, err := h.answer(ctx, group, body[0], body[1:])
	return appendAnswer(nil, out, err)
}

func appendAnswer(dst, out []byte, err error) []byte {
	var nl *NotLeaderError
	switch {
	case err == nil:
		return append(append(dst, answerOK), out...)
	case errors.As(err, &nl):
		return append(append(dst, answerElse), nl.Leader...)
	case errors.Is(err, ErrNotFound):
		return append(append(dst, answerNotFound), err.Error()...)
	default:
		return append(append(dst, answerError), err.Error()...)
	}
}

func readAnswer(shard telemetry.ShardID, b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("empty answer")
	}
	switch text := string(b[1:]); b[0] {
	case answerOK:
		return b[1:], nil
	case answerElse:
		return nil, &NotLeaderError{Shard: shard, Leader: text}
	case answerNotFound:
		return nil, fmt.Errorf("%s: %w", strings.TrimSuffix(text, ": "+ErrNotFound.Error()), ErrNotFound)
	default:
		text = strings.TrimSuffix(text, ": "+store.ErrUnavailable.Error())
		return nil, fmt.Errorf("shard %d: %s: %w", shard, text, store.ErrUnavailable)
	}
}

func (h *Host) answer(ctx context.Context, group uint32, ask byte, body []byte) ([]byte, error) {
	switch ask {
	case askReadings, askBuckets, askReached, askDevice, askRemove, askAccept, askAttributes, askPut, askApplied, askWatch, askFetch, askRetained, askSettled:
		s, ok := h.Shard(ShardOfGroup(group))
		if !ok {
			return nil, &NotLeaderError{Shard: ShardOfGroup(group)}
		}
		return s.answerOne(ctx, ask, body)
	case askStatus, askDigests:
		var out []ReplicaStatus
		for _, s := range h.all() {
			out = append(out, s.Status(ask == askDigests))
		}
		return json.Marshal(out)
	case askLeaders:
		return h.answerLeaders(body)
	case askRebuild:
		s, ok := h.Shard(ShardOfGroup(group))
		if !ok {
			return nil, &NotLeaderError{Shard: ShardOfGroup(group)}
		}
		if err := s.Verify(); err != nil {
			return nil, err
		}
		r := wire.NewReader(body)
		below, peer := r.Uint(), r.String()
		if r.Err() == nil {
			h.hearGone(s.id, peer, uint32(below))
		}
		return nil, r.Err()
	case askMember:
		return json.Marshal(h.member(ShardOfGroup(group), len(body) > 0 && body[0] == 1))
	case askDevices, askAnomalies, askQuarantine, askCounts:
		return h.answerList(ask, body)
	}
	return nil, fmt.Errorf("unknown question %q: the asking node is of a later version", ask)
}

func (s *Shard) answerOne(ctx context.Context, ask byte, body []byte) ([]byte, error) {
	switch ask {
	case askReadings:
		q, err := decodeQuery(body)
		if err != nil {
			return nil, err
		}
		points, err := s.Readings(ctx, q)
		return appendPoints(nil, points), err
	case askBuckets:
		q, err := decodeAggregate(body)
		if err != nil {
			return nil, err
		}
		buckets, err := s.Buckets(ctx, q)
		return appendBuckets(nil, buckets), err
	case askReached:
		r := wire.NewReader(body)
		index := r.Uint()
		if r.Err() != nil {
			return nil, r.Err()
		}
		last, err := s.last()
		return wire.AppendBool(wire.AppendUint(nil, last), last >= index), err
	case askWatch:
		return nil, s.answerWatch(ctx, body)
	case askDevice:
		if err := s.Verify(); err != nil {
			return nil, err
		}
		d, err := s.Device(string(body))
		if err != nil {
			return nil, err
		}
		return json.Marshal(d)
	case askAttributes, askPut, askApplied:
		return s.answerRegister(ctx, ask, body)
	case askAccept:
		if err := s.Verify(); err != nil {
			return nil, err
		}
		return nil, s.AcceptLoss()
	case askFetch:
		return s.answerFetch(body)
	case askRetained:
		return s.answerRetained(body)
	case askSettled:
		return nil, s.sessions.Settled(ctx, s.id)
	default:
		var q listQuestion
		if err := json.Unmarshal(body, &q); err != nil {
			return nil, fmt.Errorf("decode question: %w", err)
		}
		return nil, s.RemoveQuarantined(ctx, q.Removed...)
	}
}

// answerLeaders tells, per shard asked for, the leader this node knows.
func (h *Host) answerLeaders(body []byte) ([]byte, error) {
	r := wire.NewReader(body)
	var b []byte
	for range r.Count(1) {
		id := telemetry.ShardID(r.Uint())
		s, ok := h.Shard(id)
		if !ok {
			continue
		}
		b = wire.AppendUint(b, uint64(id))
		b = wire.AppendString(b, s.leader())
	}
	return b, r.Err()
}

// answerList gathers from every shard this node provably leads.
func (h *Host) answerList(ask byte, body []byte) ([]byte, error) {
	var q listQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("decode question: %w", err)
	}
	var where *fleet.Expression
	if q.Where != "" {
		var err error
		if where, err = fleet.Parse(q.Where, time.UnixMicro(q.Now)); err != nil {
			return nil, err
		}
	}
	out := listAnswer{Quarantine: map[telemetry.ShardID][]Quarantined{}, Counts: map[telemetry.ShardID]Counts{}}
	for _, s := range h.led() {
		out.Shards = append(out.Shards, s.id)
		switch ask {
		case askDevices:
			out.Devices = append(out.Devices, s.Devices(q.After, q.Limit, where)...)
		case askAnomalies:
			out.Anomalies = append(out.Anomalies, s.Anomalies(q.Anomaly)...)
		case askQuarantine:
			out.Quarantine[s.id] = s.Quarantined()
		case askCounts:
			out.Counts[s.id] = s.Counts()
		}
	}
	return json.Marshal(out)
}

// led returns the shards this node leads by its quorum's word.
func (h *Host) led() []*Shard {
	all := h.all()
	ok := make([]bool, len(all))
	var wg sync.WaitGroup
	for i, s := range all {
		if s.raft.State() == raft.Leader {
			wg.Go(func() { ok[i] = s.Verify() == nil })
		}
	}
	wg.Wait()
	var out []*Shard
	for i, s := range all {
		if ok[i] {
			out = append(out, s.Shard)
		}
	}
	return out
}
