package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// own gives the batch's devices names that no other shard has.
func own(b *telemetry.Batch) *telemetry.Batch {
	for i := range b.Devices {
		b.Devices[i] = fmt.Sprintf("s%d-%05d", b.Shard, i)
		b.Updates[i].Device = b.Devices[i]
	}
	return b
}

// together writes batches at once, in one group as far as the combiner allows.
func together(db *DB, batches []*telemetry.Batch) []error {
	for range cap(db.writes) {
		db.writes <- struct{}{} // nobody gets a turn before all of them wait
	}
	errs := make([]error, len(batches))
	var wg sync.WaitGroup
	for i, b := range batches {
		wg.Go(func() { errs[i] = db.Write(context.Background(), b) })
	}
	ended := make(chan struct{})
	go func() {
		wg.Wait()
		close(ended)
	}()
	for n := 0; n < len(batches); {
		db.combiner.mu.Lock()
		n = len(db.combiner.waiting)
		db.combiner.mu.Unlock()
		select {
		case <-ended: // all failed before they waited
			n = len(batches)
		case <-time.After(time.Millisecond):
		}
	}
	for range cap(db.writes) {
		<-db.writes
	}
	<-ended
	return errs
}

func commits(t *testing.T, url string) int64 {
	t.Helper()
	return one[int64](t, url, "select count(distinct xmin::text) from flush_watermarks")
}

// TestSmallBatchesShareATransaction, and one that must not go in leaves the
// others alone.
func TestSmallBatchesShareATransaction(t *testing.T) {
	url := server(t).Database(t)
	cfg := config(url)
	cfg.Conns = 2 // one for writes
	db := open(t, cfg)
	write(t, db, own(fleet(7, 0, 5, 3, 3, t0)))
	var batches []*telemetry.Batch
	rows := int64(36)
	for shard := range telemetry.ShardID(20) {
		b := own(fleet(shard, 0, 10, 3, 3, t0)) // shard 7 is elsewhere
		batches = append(batches, b)
		if shard != 7 {
			rows += int64(len(b.Rows))
		}
	}
	for i, err := range together(db, batches) {
		if i == 7 {
			if w := mismatch(t, err); w.Have != 5 || w.Shard != 7 {
				t.Errorf("shard 7: %+v", w)
			}
		} else if err != nil {
			t.Errorf("shard %d: %v", i, err)
		}
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != rows {
		t.Errorf("%d rows, want %d", n, rows)
	}
	if n := commits(t, url); n != 2 {
		t.Errorf("%d transactions, want that of shard 7 and one for the others", n)
	}
	// A watermark that moves while the group's COPY runs is found at the end.
	for shard := range batches {
		batches[shard] = own(fleet(telemetry.ShardID(shard), 10, 20, 3, 3, t0+1e9))
	}
	batches = append(batches[:7], batches[8:]...)
	server(t).Exec(t, url, `create function meddle() returns trigger language plpgsql as $$ begin
			update flush_watermarks set last_index = 15, term = 9 where shard = 3 and last_index = 10; return null; end $$`,
		"create trigger meddle after insert on telemetry for each statement execute function meddle()")
	for i, err := range together(db, batches) {
		if i == 3 {
			if w := mismatch(t, err); w.Have != 10 && w.Have != 15 {
				t.Errorf("shard 3: %+v", w)
			}
		} else if err != nil {
			t.Errorf("shard %d: %v", i, err)
		}
	}
}

// TestASmallGroupWaitsWhileOthersJoin, until it is large enough, nobody comes any
// more, another group has taken all, or it has waited for long.
func TestASmallGroupWaitsWhileOthersJoin(t *testing.T) {
	for _, tc := range []struct {
		name   string
		rows   []int // of the batch that comes while the group waits; -1: all are taken
		waited int
	}{
		{"nobody comes", []int{0, 500}, 1},
		{"some come", []int{500, 500, 0, 500}, 3},
		{"many come", []int{500, groupRowsMin, 500}, 2},
		{"they are taken", []int{500, -1, 500}, 2},
		{"they keep coming", slices.Repeat([]int{1}, 2*groupLingers), groupLingers},
		{"the store closes", nil, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c combiner
			arrive := func(n int) {
				c.add(&request{batch: &telemetry.Batch{Shard: telemetry.ShardID(len(c.waiting)), Rows: make([]telemetry.Row, n)}})
			}
			arrive(100)
			c.add(&request{batch: &telemetry.Batch{Lane: telemetry.LaneLate, Rows: make([]telemetry.Row, groupRowsMin)}})
			waited := 0
			c.gather(telemetry.LaneLive, func() bool {
				if waited++; waited > len(tc.rows) {
					return false
				}
				if n := tc.rows[waited-1]; n >= 0 {
					arrive(n)
				} else {
					c.take(telemetry.LaneLive)
				}
				return true
			})
			if waited != tc.waited {
				t.Errorf("waited %d times, want %d", waited, tc.waited)
			}
		})
	}
}

// The row that one shard refuses is searched for among its own alone.
func TestRefusedRowOfOneShard(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	cfg := config(url)
	cfg.Conns = 2
	db := open(t, cfg)
	write(t, db, own(fleet(99, 0, 1, 1, 1, t0)))
	s.Exec(t, url, "alter table telemetry add constraint plausible check (value < 1000)")
	var batches []*telemetry.Batch
	for shard := range telemetry.ShardID(6) {
		batches = append(batches, own(fleet(shard, 0, 10, 5, 20, t0)))
	}
	batches[2].Rows[17].Value = 5000
	if err := errors.Join(together(db, batches)...); err != nil {
		t.Fatal(err)
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != 4+6*400-1 {
		t.Errorf("%d rows", n)
	}
	if got := ask[string](t, url, "select shard || ' ' || device_id from dead_letters"); len(got) != 1 || got[0] != "2 s2-00000" {
		t.Errorf("dead letters %q", got)
	}
}

// TestGroupThatTakesTooLongIsWrittenInParts: a server that cannot take all batches
// of a group within the statement timeout takes them one by one.
func TestGroupThatTakesTooLongIsWrittenInParts(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	cfg := config(url)
	cfg.Conns = 2
	db := open(t, cfg)
	write(t, db, own(fleet(99, 0, 1, 1, 1, t0)))
	s.Exec(t, url, `create function slow() returns trigger language plpgsql as $$ begin
			if (select count(*) from fresh) > 500 then raise exception 'statement timeout' using errcode = '57014'; end if;
			return null; end $$`,
		"create trigger slow after insert on telemetry referencing new table as fresh for each statement execute function slow()")
	var batches []*telemetry.Batch
	for shard := range telemetry.ShardID(4) {
		batches = append(batches, own(fleet(shard, 0, 10, 5, 20, t0)))
	}
	if err := errors.Join(together(db, batches)...); err != nil {
		t.Fatal(err)
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != 4+4*400 {
		t.Errorf("%d rows", n)
	}
	if err := db.Write(context.Background(), own(fleet(5, 0, 20, 5, 40, t0))); err == nil || !strings.Contains(err.Error(), "lower flush.rows_max") {
		t.Errorf("a batch that is too large by itself: %v", err)
	}
}

// TestLanesHaveWatermarksOfTheirOwn, in the same shard and at the same time.
func TestLanesHaveWatermarksOfTheirOwn(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	live, late := fleet(1, 0, 10, 3, 3, t0), fleet(1, 0, 30, 3, 3, t0-86_400_000_000)
	late.Lane = telemetry.LaneLate
	if err := errors.Join(together(db, []*telemetry.Batch{live, late})...); err != nil {
		t.Fatal(err)
	}
	at, err := db.Watermarks(context.Background(), 1)
	if err != nil || at != (telemetry.Watermarks{To: [telemetry.Lanes]uint64{10, 30}}) {
		t.Errorf("watermarks %v, %v", at, err)
	}
	w := mismatch(t, db.Write(context.Background(), late))
	if w.Lane != telemetry.LaneLate || w.Have != 30 {
		t.Errorf("late batch again: %+v", w)
	}
	_, at, err = db.Read(context.Background(), 1, all("sensor-00001"))
	if err != nil || at != (telemetry.Watermarks{To: [telemetry.Lanes]uint64{10, 30}}) {
		t.Errorf("read at %v, %v", at, err)
	}
}

// TestCallerThatGivesUpTakesNobodyAlong: the transaction goes on for the others.
func TestCallerThatGivesUpTakesNobodyAlong(t *testing.T) {
	url := server(t).Database(t)
	cfg := config(url)
	cfg.Conns = 2
	db := open(t, cfg)
	write(t, db, own(fleet(9, 0, 1, 1, 1, t0)))
	db.writes <- struct{}{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- db.Write(ctx, own(fleet(1, 0, 10, 3, 3, t0))) }()
	go func() { done <- db.Write(context.Background(), own(fleet(2, 0, 10, 3, 3, t0))) }()
	eventually(t, "both wait", func() bool {
		db.combiner.mu.Lock()
		defer db.combiner.mu.Unlock()
		return len(db.combiner.waiting) == 2
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) && !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("the caller that gave up: %v", err)
	}
	<-db.writes
	if err := <-done; err != nil {
		t.Fatalf("the other one: %v", err)
	}
	if at, err := db.Watermarks(context.Background(), 1); err != nil || at.To[0] != 0 {
		t.Errorf("watermarks of who gave up before its turn: %v, %v", at, err)
	}
}
