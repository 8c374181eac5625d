package api

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// inflightMax is how many messages of one request wait for their commit: a
	// block of the log holds up to 512, and more than two blocks per commit
	// latency (~10 ms) would be over 100,000 messages/s on one connection.
	inflightMax = 1024
	// lineErrorsMax bounds the errors an answer lists.
	lineErrorsMax = 1000
)

// tally counts the outcomes of one request.
type tally struct {
	mu       sync.Mutex
	counts   Counts
	open     int
	writes   []telemetry.Write
	settled  bool          // the answer is being written, what comes later is too late
	stopped  bool          // an outcome is unknown: the client must send all again anyway
	progress chan struct{} // holds a token after every outcome
}

func newTally() *tally {
	return &tally{progress: make(chan struct{}, 1)}
}

// begin counts a message as open; false asks the caller to wait for progress or,
// when stopped, to read no further.
func (t *tally) begin() (ok, stopped bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped || t.open >= inflightMax {
		return false, t.stopped
	}
	t.open++
	return true, false
}

// record adds the result of one line that was begun.
func (t *tally) record(number int, r *telemetry.Result) {
	t.mu.Lock()
	t.open--
	if !t.settled {
		t.add(number, r)
	}
	t.mu.Unlock()
	select {
	case t.progress <- struct{}{}:
	default: // a token is there already
	}
}

// refuse adds a message that was never begun.
func (t *tally) refuse(number int, why telemetry.Refusal, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(number, &telemetry.Result{Refused: 1, Reason: reason, Refusal: why})
}

// unknown adds a message that was never begun and that the client must send again.
func (t *tally) unknown() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.add(0, &telemetry.Result{Unknown: 1})
}

// add is for callers that hold mu.
func (t *tally) add(number int, r *telemetry.Result) {
	c := &t.counts
	c.Received += r.Applied + r.Duplicate + r.Quarantined + r.Refused + r.Unknown
	c.Applied += r.Applied
	c.Duplicate += r.Duplicate
	c.Quarantined += r.Quarantined
	c.Refused += r.Refused
	c.Unknown += r.Unknown
	for _, w := range r.Writes {
		t.writes = telemetry.AddWrite(t.writes, w)
	}
	t.stopped = t.stopped || r.Unknown > 0
	if r.Refused > 0 && int(r.Refusal) < len(c.refusals) {
		c.refusals[r.Refusal] += r.Refused
	}
	if r.Reason == "" && r.Quarantined+r.Refused == 0 {
		return
	}
	if len(c.Errors) == lineErrorsMax {
		c.ErrorsOmitted++
		return
	}
	c.Errors = append(c.Errors, LineError{Line: number, Reason: cmp.Or(r.Reason, "not accepted")})
}

func (t *tally) openCount() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open
}

// wait blocks until an outcome comes in, done is closed, or the time is up.
func (t *tally) wait(done <-chan struct{}, timeout *time.Timer, limit time.Duration) bool {
	timeout.Reset(limit)
	defer timeout.Stop()
	select {
	case <-t.progress:
		return true
	case <-done:
		return false
	case <-timeout.C:
		return false
	}
}

// settle closes the tally; what is still open becomes unknown. The token is the
// cluster's.
func (t *tally) settle(cluster string) Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settled = true
	t.counts.Received += t.open
	t.counts.Unknown += t.open
	slices.SortFunc(t.counts.Errors, func(a, b LineError) int { return cmp.Compare(a.Line, b.Line) })
	t.counts.Token = telemetry.WriteToken(cluster, t.writes)
	if t.counts.Errors == nil {
		t.counts.Errors = []LineError{}
	}
	return t.counts
}
