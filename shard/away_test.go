package shard

import (
	"context"
	"errors"
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

// TestADatabaseThatIsBackIsBackForAll: a lane that failed does not sit out its
// pause when another one of the node has written.
func TestADatabaseThatIsBackIsBackForAll(t *testing.T) {
	st := &downStore{}
	r := newLaneRig(t, st)
	r.f.cfg.RowsMax = 1
	r.f.shard.readable.Store(1)
	r.publish(10, 0)
	synctest.Test(t, func(t *testing.T) {
		for _, writes := range []bool{false, true} {
			r.f.turns.written() // its channel belongs to the bubble
			var waited time.Duration
			done := make(chan struct{})
			go func() {
				defer close(done)
				start, retry := time.Now(), flushRetryMax
				r.f.pause(t.Context(), &retry, errors.New("connection refused"))
				waited = time.Since(start)
			}()
			time.Sleep(time.Second)
			want := flushRetryMax
			if writes {
				want = time.Second
				l := &r.f.lanes[telemetry.LaneLive]
				if err := r.f.write(t.Context(), l, span{from: 0, to: 1}, func(*telemetry.Batch) {}); err != nil || st.writes != 1 {
					t.Fatalf("%d writes, err %v", st.writes, err)
				}
			}
			<-done
			if waited != want {
				t.Errorf("a lane paused for %v, want %v (another one wrote: %t)", waited, want, writes)
			}
		}
	})
}
