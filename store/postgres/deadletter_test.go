package postgres

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
)

// TestDeadLettersAreListedReplayedAndDropped: what a constraint kept out goes in,
// bit for bit, when it is gone.
func TestDeadLettersAreListedReplayedAndDropped(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url))
	write(t, db, fleet(1, 0, 1, 1, 1, t0))
	s.Exec(t, url, "alter table telemetry add constraint plausible check (value < 1000)",
		"alter table devices add constraint known check (device_id <> 'sensor-00003')",
		"alter table anomalies add constraint cause check (cause <> 'spike')")
	b := fleet(1, 1, 2, 9, 3, t0+1_000_000_000)
	b.Rows[17].Value, b.Rows[40].Value, b.Rows[41].Value = math.Nextafter(5000, 6000), 6000, 7000
	b.Anomalies = []telemetry.Anomaly{{ID: "1-1-0", Device: "sensor-00001", Sensor: "x", Cause: "spike", Value: 3, Opened: t0, Closed: t0 + 5}}
	write(t, db, b)
	ctx := context.Background()
	q := LetterQuery{From: math.MinInt64, To: math.MaxInt64, Limit: 2}
	var all []DeadLetter
	for {
		page, err := db.DeadLetters(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		all = append(all, page...)
		q.Before = page[len(page)-1].ID
	}
	if len(all) != 5 || all[4].Kind != kindReading || all[4].SQLState != "23514" || all[4].Shard != 1 || all[4].From != 1 || all[4].To != 2 {
		t.Fatalf("%d letters: %+v", len(all), all)
	}
	q = LetterQuery{Device: "sensor-00003", From: math.MinInt64, To: math.MaxInt64, Limit: 100}
	if got, err := db.DeadLetters(ctx, q); err != nil || len(got) == 0 || got[0].Device != "sensor-00003" {
		t.Fatalf("of one device: %+v, %v", got, err)
	}
	var refused *RefusedError
	if err := db.ReplayDeadLetter(ctx, all[4].ID); !errors.As(err, &refused) || refused.SQLState != "23514" {
		t.Fatalf("replayed against the constraint: %v", err)
	}
	s.Exec(t, url, "alter table telemetry drop constraint plausible", "alter table devices drop constraint known", "alter table anomalies drop constraint cause")
	for _, l := range all[:4] {
		if l.Kind == kindReading && l.ID == all[3].ID {
			continue // to be dropped
		}
		if err := db.ReplayDeadLetter(ctx, l.ID); err != nil {
			t.Fatalf("replay %+v: %v", l, err)
		}
	}
	if err := db.ReplayDeadLetter(ctx, all[4].ID); err != nil {
		t.Fatal(err)
	}
	if err := db.DropDeadLetter(ctx, all[3].ID); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{"replay": db.ReplayDeadLetter(ctx, all[3].ID), "drop": db.DropDeadLetter(ctx, all[3].ID)} {
		if !errors.Is(err, ErrNoLetter) {
			t.Errorf("%s of a letter that is gone: %v", name, err)
		}
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != 4+int64(len(b.Rows))-1 {
		t.Errorf("%d rows, want all but the dropped one", n)
	}
	if n := one[int64](t, url, "select count(*) from telemetry where value = $1", b.Rows[17].Value); n != 1 {
		t.Errorf("%d rows with the exact value", n)
	}
	if n := one[int64](t, url, "select (select count(*) from devices) + (select count(*) from anomalies where closed is not null)"); n != 10 {
		t.Errorf("%d devices and anomalies, want 9 and 1", n)
	}
}

func TestRecordOfLostRowsHasNothingToReplay(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	write(t, db, &telemetry.Batch{Shard: 4, From: 0, To: 9, Term: 1, Lost: true})
	letters, err := db.DeadLetters(context.Background(), LetterQuery{From: math.MinInt64, To: math.MaxInt64, Limit: 10})
	if err != nil || len(letters) != 1 || letters[0].Kind != kindLost || letters[0].To != 9 {
		t.Fatalf("%+v, %v", letters, err)
	}
	if err := db.ReplayDeadLetter(context.Background(), letters[0].ID); !errors.Is(err, ErrNotReplayable) {
		t.Errorf("replay: %v", err)
	}
	if err := db.DropDeadLetter(context.Background(), letters[0].ID); err != nil {
		t.Error(err)
	}
}
