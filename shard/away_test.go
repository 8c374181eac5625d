package shard

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// downStore is a database that fails, and counts what it is asked.
type downStore struct {
	SharedStore
	err           error
	writes, asked int
}

func (s *downStore) Write(context.Context, *telemetry.Batch) error {
	s.writes++
	return s.err
}

func (s *downStore) Watermarks(context.Context, telemetry.ShardID) (telemetry.Watermarks, error) {
	s.asked++
	return telemetry.Watermarks{}, s.err
}

// TestNothingIsGatheredForADatabaseThatIsAway: after a failure a lane asks before
// it reads its backlog again.
func TestNothingIsGatheredForADatabaseThatIsAway(t *testing.T) {
	away := errors.New("connection refused")
	st := &downStore{err: away}
	r := newLaneRig(t, st)
	r.f.cfg.RowsMax = 1 // due at once
	r.f.shard.readable.Store(1)
	r.publish(10, 0)
	l := &r.f.lanes[telemetry.LaneLive]
	if err := r.f.flushLane(t.Context(), l); !errors.Is(err, away) || st.writes != 1 {
		t.Fatalf("%d writes, err %v", st.writes, err)
	}
	l.retry, st.asked = time.Second, 0 // as runLane does
	for n := 1; n <= 3; n++ {
		if err := r.f.flushLane(t.Context(), l); !errors.Is(err, away) || st.writes != 1 || st.asked != n {
			t.Fatalf("%d writes, asked %d times of %d, err %v", st.writes, st.asked, n, err)
		}
	}
	st.err = nil
	if err := r.f.answers(t.Context(), l); err != nil {
		t.Fatalf("the database is back: %v", err)
	}
	st.err = away
	r.f.shard.readable.Store(0)
	if err := r.f.flushLane(t.Context(), l); err != nil || st.asked != 4 {
		t.Fatalf("who does not lead has nothing to ask: %d times, err %v", st.asked, err)
	}
}

// TestADatabaseThatIsBackIsBackForAll: a lane that got no answer does not sit out
// its pause when another one of the node gets one, or writes; a lane with an error
// of its own does.
func TestADatabaseThatIsBackIsBackForAll(t *testing.T) {
	refused := errors.New("connection refused")
	for _, tt := range []struct {
		name  string
		err   error
		wakes func(*flusher) error
		woken bool
	}{
		{"nobody hears of it", fmt.Errorf("%w: %w", errNoAnswer, refused), func(*flusher) error { return nil }, false},
		{"another one writes", fmt.Errorf("%w: %w", errNoAnswer, refused), writeSome, true},
		{"another one is answered", fmt.Errorf("%w: %w", errNoAnswer, refused), askAgain, true},
		{"another one writes, the error is the shard's own", refused, writeSome, false},
		{"another one is answered, the error is the shard's own", refused, askAgain, false},
	} {
		r := newLaneRig(t, &downStore{})
		r.f.cfg.RowsMax = 1
		r.f.shard.readable.Store(1)
		r.publish(10, 0)
		synctest.Test(t, func(t *testing.T) {
			r.f.turns.answered() // its channel belongs to the bubble
			var waited time.Duration
			done := make(chan struct{})
			go func() {
				defer close(done)
				start, retry := time.Now(), flushRetryMax
				r.f.pause(t.Context(), &retry, tt.err)
				waited = time.Since(start)
			}()
			const after = flushRetryMax / 4
			time.Sleep(after)
			if err := tt.wakes(r.f); err != nil {
				t.Fatal(err)
			}
			<-done
			if tt.woken != (waited == after) || waited > flushRetryMax || !tt.woken && waited < flushRetryMax/2 {
				t.Errorf("%s: a lane paused for %v", tt.name, waited)
			}
		})
	}
}

func writeSome(f *flusher) error {
	return f.write(context.Background(), &f.lanes[telemetry.LaneLive], span{from: 0, to: 1}, func(*telemetry.Batch) {})
}

func askAgain(f *flusher) error {
	l := &f.lanes[telemetry.LaneBacklog]
	l.retry = time.Second
	return f.answers(context.Background(), l)
}
