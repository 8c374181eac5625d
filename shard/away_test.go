package shard

import (
	"context"
	"errors"
	"testing"
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
