package shard

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// A device's attributes are a linearizable register: a put is one entry of the
// log, a read is answered by a replica that has proved that it leads.

// attemptMax is how long one replica may take to answer before the leader is
// looked for again: one that stands still never says so.
const attemptMax = time.Second

// OutcomeUnknownError answers a put that was proposed and not answered in time:
// it may take effect, now or a little later, or never.
type OutcomeUnknownError struct {
	Device string
	Err    error
}

func (e *OutcomeUnknownError) Error() string {
	return fmt.Sprintf("whether the attributes of device %q were stored is not known: read them before the next attempt", e.Device)
}

// Unwrap gives the last attempt's error.
func (e *OutcomeUnknownError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, store.ErrUnavailable) true.
func (e *OutcomeUnknownError) Is(target error) bool { return target == store.ErrUnavailable }

// Attributes reads a device's attributes, never stale ones; ErrNotFound when
// the device is not known.
func (r *Router) Attributes(ctx context.Context, device string) (Attributes, error) {
	var a Attributes
	id, err := r.shardOf(device)
	if err != nil {
		return a, err
	}
	b, err := r.leaderAnswer(ctx, id, append([]byte{askAttributes}, device...))
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(b, &a)
}

// PutAttributes replaces a device's attributes. A zero ID is filled with a
// random one; a put that is repeated with the same ID has one effect. After an
// *OutcomeUnknownError it may or may not have had it, after any other error it
// certainly has none.
func (r *Router) PutAttributes(ctx context.Context, p Put) (PutResult, error) {
	if err := p.check(); err != nil {
		return PutResult{}, fmt.Errorf("%w: %w", errInvalidPut, err)
	}
	id, err := r.shardOf(p.Device)
	if err != nil {
		return PutResult{}, err
	}
	if p.ID == ([16]byte{}) {
		_, _ = rand.Read(p.ID[:]) // never fails, crypto/rand says
	}
	b, err := r.leaderAnswer(ctx, id, []byte{askApplied})
	if err != nil {
		return PutResult{}, err
	}
	if p.Base, err = readUint(b); err != nil {
		return PutResult{}, err
	}
	return r.put(ctx, id, &p)
}

var errInvalidPut = errors.New("nothing is stored")

// IsInvalid reports whether an error of PutAttributes is the caller's mistake.
func IsInvalid(err error) bool { return errors.Is(err, errInvalidPut) }

// put proposes until it is answered; the state machine recognises what it has
// applied already.
func (r *Router) put(ctx context.Context, id telemetry.ShardID, p *Put) (PutResult, error) {
	question := append([]byte{askPut}, p.encode()...)
	sent := false
	for {
		b, err := r.attempt(ctx, id, question)
		if err == nil {
			return readPutResult(p.Device, b)
		}
		var nl *NotLeaderError
		sent = sent || !errors.As(err, &nl)
		if !r.again(ctx, id, err) {
			if sent {
				return PutResult{}, &OutcomeUnknownError{Device: p.Device, Err: err}
			}
			return PutResult{}, fmt.Errorf("put attributes in shard %d: %w: %w", id, err, store.ErrUnavailable)
		}
	}
}

func readPutResult(device string, b []byte) (PutResult, error) {
	wr := wire.NewReader(b)
	res := decodePutResult(wr)
	if wr.Err() != nil || res.Status < PutStored || res.Status > PutMismatch {
		return PutResult{}, &OutcomeUnknownError{Device: device, Err: errors.Join(wr.Err(), fmt.Errorf("answered with status %d", res.Status))}
	}
	return res, nil
}

func readUint(b []byte) (uint64, error) {
	wr := wire.NewReader(b)
	return wr.Uint(), wr.Err()
}

// leaderAnswer puts a harmless question to the leader until it is answered or
// ctx ends. Unlike ask it gives up on a leader that does not answer.
func (r *Router) leaderAnswer(ctx context.Context, id telemetry.ShardID, question []byte) ([]byte, error) {
	for {
		b, err := r.attempt(ctx, id, question)
		if err == nil || errors.Is(err, ErrNotFound) {
			return b, err
		}
		if !r.again(ctx, id, err) {
			return nil, fmt.Errorf("ask shard %d: %w: %w", id, err, store.ErrUnavailable)
		}
	}
}

func (r *Router) attempt(ctx context.Context, id telemetry.ShardID, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptMax)
	defer cancel()
	return r.askOnce(ctx, id, question)
}

// again waits a little after a failed attempt; false when ctx has ended.
func (r *Router) again(ctx context.Context, id telemetry.ShardID, err error) bool {
	r.learn(id, err)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(routeRetry):
		return true
	}
}

// answerRegister answers the questions about attributes.
func (s *Shard) answerRegister(ctx context.Context, ask byte, body []byte) ([]byte, error) {
	switch ask {
	case askAttributes:
		if err := s.Verify(); err != nil {
			return nil, err
		}
		a, err := s.Attributes(string(body))
		if err != nil {
			return nil, err
		}
		return json.Marshal(a)
	case askApplied:
		if s.readable.Load() == 0 {
			return nil, s.notLeader()
		}
		s.fsm.mu.Lock()
		defer s.fsm.mu.Unlock()
		return wire.AppendUint(nil, s.fsm.index), nil
	default:
		v, err := s.Call(ctx, body)
		if err != nil {
			return nil, err
		}
		res, ok := v.(PutResult)
		if !ok {
			return nil, fmt.Errorf("state machine answered a put with %T", v)
		}
		return res.append(nil), nil
	}
}

// Attributes are the attributes of a device as this replica knows them.
func (s *Shard) Attributes(id string) (Attributes, error) {
	m := s.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.registry.byID[id]
	if !ok {
		return Attributes{}, fmt.Errorf("device %q: %w", id, ErrNotFound)
	}
	d := m.registry.devices.peek(i)
	return Attributes{Revision: d.revision, Attributes: m.registry.attributes(d)}, nil
}
