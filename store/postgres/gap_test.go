package postgres

import (
	"context"
	"errors"
	"testing"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// stored checks what the database says of a shard, and how many rows it has.
func stored(t *testing.T, db *DB, url string, shard telemetry.ShardID, want telemetry.Watermarks, rows int) {
	t.Helper()
	if at, err := db.Watermarks(context.Background(), shard); err != nil || at != want {
		t.Fatalf("watermarks %+v, %v, want %+v", at, err, want)
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != int64(rows) {
		t.Fatalf("%d rows, want %d", n, rows)
	}
}

func marks(live, late, gapFrom, gapTo uint64) telemetry.Watermarks {
	return telemetry.Watermarks{To: [telemetry.Lanes]uint64{live, late}, Gap: telemetry.Gap{From: gapFrom, To: gapTo}}
}

// part is a batch of 36 rows of its own; lane backlog drains a gap, live leaves one.
func part(shard telemetry.ShardID, lane telemetry.Lane, from, to, gapEnd uint64) *telemetry.Batch {
	b := own(fleet(shard, from, to, 3, 3, t0+int64(from)*10_000_000+int64(lane)))
	b.Lane, b.GapEnd = lane, gapEnd
	return b
}

// TestGapIsLeftAndDrained: the live edge goes in first, what it has left out
// follows, each in one transaction with what says so, and nothing else moves them.
func TestGapIsLeftAndDrained(t *testing.T) {
	const live, backlog = telemetry.LaneLive, telemetry.LaneBacklog
	url := server(t).Database(t)
	db := open(t, config(url))
	refused := func(b *telemetry.Batch, have uint64) {
		t.Helper()
		if w := mismatch(t, db.Write(context.Background(), b)); w.Have != have || w.Lane != b.Lane {
			t.Fatalf("refused with %+v, want %d", w, have)
		}
	}
	write(t, db, part(1, live, 0, 10, 0))
	write(t, db, part(1, live, 10, 40, 30))
	stored(t, db, url, 1, marks(40, 0, 10, 30), 72)
	refused(part(1, live, 10, 40, 30), 40)    // again
	refused(part(1, live, 40, 60, 50), 40)    // a second gap
	refused(part(1, backlog, 12, 20, 30), 10) // not from its beginning
	refused(part(1, backlog, 10, 20, 31), 10) // another gap
	deposed := part(1, backlog, 10, 20, 30)
	deposed.Term--
	refused(deposed, 10)
	stored(t, db, url, 1, marks(40, 0, 10, 30), 72)

	late := part(1, telemetry.LaneLate, 0, 35, 0)
	batches := []*telemetry.Batch{part(1, live, 40, 50, 0), part(1, backlog, 10, 20, 30), late, part(2, live, 0, 9, 5)}
	if err := errors.Join(together(db, batches)...); err != nil {
		t.Fatal(err)
	}
	stored(t, db, url, 1, marks(50, 35, 10+10, 30), 72+4*36)
	stored(t, db, url, 2, marks(9, 0, 0, 5), 72+4*36)
	_, at, err := db.Read(context.Background(), 1, all("s1-00000"))
	if err != nil || at != marks(50, 35, 20, 30) {
		t.Errorf("read at %+v, %v", at, err)
	}
	// Both gaps in one transaction, with a batch that must not go in.
	refused(part(2, backlog, 1, 5, 5), 0)
	for i, err := range together(db, []*telemetry.Batch{part(1, backlog, 20, 30, 30), part(2, backlog, 0, 5, 5), part(3, backlog, 0, 5, 5)}) {
		if (err != nil) != (i == 2) {
			t.Errorf("batch %d: %v", i, err)
		}
	}
	stored(t, db, url, 1, marks(50, 35, 0, 0), 72+6*36)
	stored(t, db, url, 2, marks(9, 0, 0, 0), 72+6*36)
	refused(part(1, backlog, 20, 30, 30), 30) // drained already
	write(t, db, part(1, live, 50, 70, 60))   // and another one
	stored(t, db, url, 1, marks(70, 35, 50, 60), 72+7*36)
	write(t, db, part(1, backlog, 50, 60, 60))
	stored(t, db, url, 1, marks(70, 35, 0, 0), 72+8*36)

	for name, b := range map[string]*telemetry.Batch{
		"behind its gap": part(1, backlog, 50, 61, 60), "a gap of nothing": part(1, live, 70, 80, 70),
		"all a gap": part(1, live, 70, 80, 80), "late": part(1, telemetry.LaneLate, 35, 80, 70),
	} {
		var w *store.WatermarkError
		if err := db.Write(context.Background(), b); err == nil || errors.As(err, &w) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGapOfTwoLeaders: of those that believe they lead, one leaves a gap, and one
// writes each part of it.
func TestGapOfTwoLeaders(t *testing.T) {
	url := server(t).Database(t)
	dbs := []*DB{open(t, config(url)), open(t, config(url))}
	rows := 0
	race := func(ends ...uint64) {
		t.Helper()
		results := make(chan error, 2*len(ends))
		for i, db := range dbs {
			for k, end := range ends {
				go func() {
					b := part(1, telemetry.LaneBacklog, 0, end, 20)
					if len(ends) == 1 { // the gap itself, and not quite the same one
						b = part(1, telemetry.LaneLive, 0, end+uint64(i), 20)
					}
					b.Term += uint64(i + k)
					results <- db.Write(context.Background(), b)
				}()
			}
		}
		won := 0
		for range cap(results) {
			err := <-results
			var w *store.WatermarkError
			if err == nil {
				won++
			} else if !errors.As(err, &w) {
				t.Fatal(err)
			}
		}
		if rows += 36; won != 1 {
			t.Fatalf("%d writers won", won)
		}
		if n := one[int64](t, url, "select count(*) from telemetry"); n != int64(rows) {
			t.Fatalf("%d rows, want %d", n, rows)
		}
	}
	for _, db := range dbs {
		eventually(t, "connected", func() bool { return db.Health() == nil })
	}
	race(30)
	race(10, 12)
	at, err := dbs[0].Watermarks(context.Background(), 1)
	if err != nil || at.To[0] < 30 || at.Gap.To != 20 || at.Gap.From < 10 {
		t.Errorf("watermarks %+v, %v", at, err)
	}
}

// TestRowsWithoutAGapAreWhatTheyWere: the tables of an earlier version, whose
// watermarks have no end of a gap, are migrated and go on.
func TestRowsWithoutAGapAreWhatTheyWere(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url))
	b := part(1, telemetry.LaneLive, 0, 10, 0)
	write(t, db, b)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s.Exec(t, url, "alter table flush_watermarks drop column until", "update sluice_schema_version set version = 5")
	db = open(t, config(url))
	eventually(t, "migrated", func() bool { return db.Health() == nil })
	stored(t, db, url, 1, marks(10, 0, 0, 0), 36)
	write(t, db, part(1, telemetry.LaneLive, 10, 20, 15))
	stored(t, db, url, 1, marks(20, 0, 10, 15), 72)
}
