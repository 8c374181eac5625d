package shard

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// outbox holds the anomaly events that nobody has confirmed yet. It is part of
// the replicated state: whoever leads next tells them again, so that a node that
// dies with events in its hands loses none of them. Indexes ascend.
type outbox []Event

const (
	// outboxMax bounds the outbox; beyond it the oldest events are only in the
	// list. A receiver that is away that long has its dead letters.
	outboxMax = 1024
	// outboxKept is what stays when nobody confirms events at all: no webhook.
	outboxKept = outboxMax / 2
	// confirmEvery bounds the entries that confirmations cost a shard.
	confirmEvery = time.Second
)

func (o *outbox) add(e Event) {
	*o = append(*o, e)
	if n := len(*o) - outboxMax; n > 0 {
		clear((*o)[:n])
		*o = (*o)[n:]
	}
}

// confirm lets go of the events up to an index.
func (o *outbox) confirm(index uint64) {
	n := 0
	for n < len(*o) && (*o)[n].Index <= index {
		n++
	}
	clear((*o)[:n])
	*o = (*o)[n:]
}

func (o outbox) append(b []byte) []byte {
	b = wire.AppendUint(b, uint64(len(o)))
	for i := range o {
		b = wire.AppendUint(b, o[i].Index)
		b = append(b, byte(o[i].Transition))
		b = wire.AppendString(b, o[i].Model)
		b = appendAnomaly(b, &o[i].Anomaly)
	}
	return b
}

func (o *outbox) decode(r *wire.Reader, shard telemetry.ShardID) {
	*o = nil
	for range r.Count(52) {
		e := Event{Shard: shard, Index: r.Uint(), Transition: anomaly.Transition(r.Byte()), Model: r.String(), Anomaly: decodeAnomaly(r)}
		e.ID = e.Anomaly.ID
		*o = append(*o, e)
	}
}

// confirmEntry says that the events up to an index were delivered.
func confirmEntry(index uint64) []byte {
	return wire.AppendUint(append(appendControl(nil, EntryWatch), watchConfirm), index)
}

func (m *machine) applyConfirm(index uint64, r *wire.Reader) any {
	to := r.Uint()
	if r.Err() != nil {
		return fmt.Errorf("decode watch entry %d: %w", index, r.Err())
	}
	m.outbox.confirm(to)
	return nil
}

// Confirm says that all events of a shard up to an index were delivered, or are
// dead letters; the shard's leader writes it to the log.
func (h *Host) Confirm(id telemetry.ShardID, index uint64) {
	s, ok := h.Shard(id)
	if !ok {
		return // moved away: its leader tells the events again
	}
	for {
		was := s.confirmed.Load()
		if index <= was || s.confirmed.CompareAndSwap(was, index) {
			return
		}
	}
}

// teller tells the events of a shard that is led here, in their order: what an
// earlier leader may not have delivered comes before anything new.
type teller struct {
	emit   func([]Event)
	outbox func(upTo uint64) []Event // those that nobody has confirmed

	passed atomic.Uint64 // index of the newest event that was applied, whoever led
	mu     sync.Mutex
	retold uint64 // term in which the outbox was told again
}

// live takes what was just applied; term is 0 for who does not lead.
func (t *teller) live(term uint64, events []Event) {
	if len(events) == 0 {
		return
	}
	last := events[len(events)-1].Index
	if term == 0 {
		t.passed.Store(last)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retell(term, events[0].Index-1)
	t.emit(events)
	t.passed.Store(last)
}

// again tells the outbox once a term. What is applied, and comes live in a moment,
// is left to that.
func (t *teller) again(term uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retell(term, t.passed.Load())
}

func (t *teller) retell(term, upTo uint64) {
	if t.retold == term {
		return
	}
	t.retold = term
	events := t.outbox(upTo)
	for i := range events {
		events[i].Repeat = true
	}
	if len(events) > 0 {
		t.emit(events)
	}
}

// unconfirmed copies the events of the outbox up to an index.
func (f *fsm) unconfirmed(upTo uint64) (out []Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.outbox {
		if e.Index <= upTo {
			out = append(out, e)
		}
	}
	return out
}

// tendOutbox tells the events again that an earlier leader may not have
// delivered, and puts confirmations into the log.
func (s *Shard) tendOutbox(ctx context.Context, now time.Time) {
	s.teller.again(s.readable.Load())
	if now.Sub(s.confirmSeen) < confirmEvery {
		return
	}
	s.confirmSeen = now
	confirmed := s.confirmed.Load()
	s.fsm.mu.Lock()
	o := s.fsm.outbox
	due := len(o) > 0 && o[0].Index <= confirmed
	if !s.confirms && len(o) > outboxKept {
		due, confirmed = true, o[len(o)-1].Index
	}
	s.fsm.mu.Unlock()
	if due {
		if _, err := s.Call(ctx, confirmEntry(confirmed)); err != nil {
			s.logger.Debug("delivery of anomaly events not confirmed", "err", err)
		}
	}
}
