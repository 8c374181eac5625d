package shard

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Bounds of the questions for retained messages.
const (
	retainedAsks     = 32      // shards that one subscription asks at the same time
	retainedFilters  = 64      // filters in one question
	retainedBytesMax = 4 << 20 // after so much of an answer the other filters are asked for again
)

// Retained lists the retained messages under a filter, of one shard or of all.
func (r *Router) Retained(ctx context.Context, filter string) ([]*session.Message, error) {
	n := r.dir.Shards()
	if home := session.HomeOf(filter); home != "" {
		return r.retainedOf(ctx, telemetry.ShardOf(home, n), filter)
	}
	type part struct {
		messages []*session.Message
		err      error
	}
	parts := make(chan part, n)
	slots := make(chan struct{}, retainedAsks)
	for id := range n {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			m, err := r.retainedOf(ctx, telemetry.ShardID(id), filter)
			parts <- part{m, err}
		}()
	}
	var out []*session.Message
	var errs []error
	for range n {
		p := <-parts
		out, errs = append(out, p.messages...), append(errs, p.err)
	}
	return out, errors.Join(errs...)
}

// retainedOf asks the leader of one shard, together with the other subscriptions that
// ask it at this moment.
func (r *Router) retainedOf(ctx context.Context, id telemetry.ShardID, filter string) ([]*session.Message, error) {
	r.mu.Lock()
	q := r.retained[id]
	if q == nil {
		q = &retainedQueue{}
		r.retained[id] = q
	}
	r.mu.Unlock()
	return q.ask(ctx, filter, func(ctx context.Context, filters []string) ([][]*session.Message, error) {
		question := wire.AppendUint([]byte{askRetained}, uint64(len(filters)))
		for _, f := range filters {
			question = wire.AppendString(question, f)
		}
		b, err := r.ask(ctx, id, question)
		if err != nil {
			return nil, err
		}
		return decodeRetained(b)
	})
}

// retainedQueue is the subscriptions of this node that ask one shard. One of them asks for
// all that wait, and those that come meanwhile are the next question: with a wildcard
// every shard must prove that it leads, and a thousand clients that subscribe at once
// need not a thousand proofs.
type retainedQueue struct {
	mu      sync.Mutex
	asking  bool // somebody asks, or has been told to
	waiting []*retainedQuestion
}

// retainedQuestion is one subscription's; turn says that it is answered (false) or that it
// is the one to ask (true), and is for the goroutine that waits.
type retainedQuestion struct {
	filter   string
	turn     chan bool
	messages []*session.Message
	err      error
}

// ask asks for a filter; do asks for several and may answer only the first of them.
func (q *retainedQueue) ask(ctx context.Context, filter string, do func(context.Context, []string) ([][]*session.Message, error)) ([]*session.Message, error) {
	me := &retainedQuestion{filter: filter, turn: make(chan bool, 1)}
	q.mu.Lock()
	q.waiting = append(q.waiting, me)
	if !q.asking {
		q.passLocked()
	}
	q.mu.Unlock()
	select {
	case mine := <-me.turn:
		if !mine {
			return me.messages, me.err
		}
	case <-ctx.Done():
		q.leave(me)
		return nil, ctx.Err()
	}
	q.mu.Lock()
	batch := slices.Clone(q.waiting[:min(len(q.waiting), retainedFilters)]) // with me at its head
	q.waiting = slices.Delete(q.waiting, 0, len(batch))
	q.mu.Unlock()
	filters := make([]string, len(batch))
	for i, other := range batch {
		filters[i] = other.filter
	}
	answers, err := do(ctx, filters)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err == nil && len(answers) == 0 {
		err = errors.New("answer about retained messages is empty")
	}
	rest := q.settle(batch, answers, err, ctx.Err() != nil)
	q.waiting = append(rest, q.waiting...)
	q.passLocked()
	return me.messages, me.err
}

// settle tells those of a batch who have an answer, and returns the others. When only
// the one that asked has given up, the others have none yet.
func (q *retainedQueue) settle(batch []*retainedQuestion, answers [][]*session.Message, err error, gaveUp bool) (rest []*retainedQuestion) {
	for i, one := range batch {
		switch {
		case i < len(answers):
			one.messages = answers[i]
		case err == nil, gaveUp && i > 0:
			rest = append(rest, one)
			continue
		default:
			one.err = err
		}
		if i > 0 {
			one.turn <- false
		}
	}
	return rest
}

// passLocked lets the first who waits ask next.
func (q *retainedQueue) passLocked() {
	if q.asking = len(q.waiting) > 0; q.asking {
		q.waiting[0].turn <- true
	}
}

// leave takes away a question that nobody waits for any more.
func (q *retainedQueue) leave(me *retainedQuestion) {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := slices.Index(q.waiting, me)
	if at < 0 {
		return // it is being asked
	}
	q.waiting = slices.Delete(q.waiting, at, at+1)
	select {
	case <-me.turn: // it was to ask
		q.passLocked()
	default:
	}
}

// answerRetained answers for the first filters of a question, at least for one.
func (s *Shard) answerRetained(body []byte) ([]byte, error) {
	r := wire.NewReader(body)
	var filters []string
	for range r.Count(1) {
		filters = append(filters, r.String())
	}
	if r.Err() != nil {
		return nil, r.Err()
	}
	if err := s.Verify(); err != nil {
		return nil, err
	}
	now := s.clock.Micros(time.Now())
	var b []byte
	for i, f := range filters {
		if i > 0 && len(b) > retainedBytesMax {
			break
		}
		s.fsm.mu.Lock() // for each of them: entries are not to wait for all
		found := s.fsm.sessions.Retained(f, now)
		s.fsm.mu.Unlock()
		b = appendRetained(b, found)
	}
	return b, nil
}

func appendRetained(b []byte, found []*session.Message) []byte {
	b = wire.AppendUint(b, uint64(len(found)))
	for _, m := range found {
		b = m.Append(b)
	}
	return b
}

// decodeRetained reads what answerRetained wrote.
func decodeRetained(b []byte) ([][]*session.Message, error) {
	var out [][]*session.Message
	for r := wire.NewReader(b); r.Len() > 0; {
		var found []*session.Message
		for range r.Count(6) {
			found = append(found, session.DecodeMessage(r))
		}
		if r.Err() != nil {
			return nil, r.Err()
		}
		out = append(out, found)
	}
	return out, nil
}
