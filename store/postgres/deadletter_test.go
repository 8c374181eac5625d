package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"strconv"
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

// message is what a letter holds of the message that its reading came in.
func message(t *testing.T, l DeadLetter) map[string]any {
	t.Helper()
	var c struct {
		Message map[string]any `json:"message"`
	}
	if err := json.Unmarshal(l.Content, &c); err != nil {
		t.Fatal(err)
	}
	return c.Message
}

// TestALetterHoldsTheWholeMessage: readings that were stored, a truth value,
// attributes and the time are there, and nothing of other messages.
func TestALetterHoldsTheWholeMessage(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url))
	write(t, db, fleet(1, 0, 1, 1, 1, t0))
	s.Exec(t, url, "alter table telemetry add constraint plausible check (value < 1000)")
	b := &telemetry.Batch{
		Shard: 1, From: 1, To: 2, Term: 3, Messages: 4, Devices: []string{"pump", "valve"}, Sensors: []string{"a", "b", "on"},
		Updates: []telemetry.DeviceUpdate{{Device: "pump", FirstSeen: t0, LastSeen: t0 + 7, Attributes: []telemetry.Attribute{{Key: "site", Value: "n1"}}}},
		Rows: []telemetry.Row{
			{Device: 0, Sensor: 0, Time: t0, Received: t0 + 5, Value: 5000},
			{Device: 0, Sensor: 0, Time: t0 + 1, Received: t0 + 5, Value: 1},
			{Device: 1, Sensor: 0, Time: t0, Received: t0 + 5, Value: 6000, Quality: telemetry.QualityReceiptTime},
			{Device: 0, Sensor: 1, Time: t0, Received: t0 + 5, Value: 0.25},
			{Device: 0, Sensor: 1, Time: t0, Received: t0 + 6, Value: 2},
		},
	}
	b.Rows = append(b.Rows, telemetry.Row{Device: 0, Sensor: 2, Time: t0, Received: t0 + 5, Value: 1, Quality: telemetry.QualityBool})
	write(t, db, b)
	letters, err := db.DeadLetters(context.Background(), LetterQuery{From: math.MinInt64, To: math.MaxInt64, Limit: 10})
	if err != nil || len(letters) != 2 {
		t.Fatalf("%+v, %v", letters, err)
	}
	valve, pump := message(t, letters[0]), message(t, letters[1])
	if want := (map[string]any{"device_id": "valve", "sensors": map[string]any{"a": 6000.}}); !reflect.DeepEqual(valve, want) {
		t.Errorf("valve: %v, want %v", valve, want)
	}
	want := map[string]any{
		"device_id": "pump", "timestamp": timeText(t0), "metadata": map[string]any{"site": "n1"},
		"sensors": map[string]any{"a": 5000., "b": 0.25, "on": true},
	}
	if !reflect.DeepEqual(pump, want) {
		t.Errorf("pump: %v, want %v", pump, want)
	}
	s.Exec(t, url, "alter table telemetry drop constraint plausible")
	for _, l := range letters {
		if err := db.ReplayDeadLetter(context.Background(), l.ID); err != nil {
			t.Fatal(err)
		}
	}
	if n := one[int64](t, url, "select count(*) from telemetry where device_id in ('pump', 'valve')"); n != int64(len(b.Rows)) {
		t.Errorf("%d rows after the replay, want %d, each once", n, len(b.Rows))
	}
}

func TestALongMessageIsHeldByOneLetter(t *testing.T) {
	b := &telemetry.Batch{Devices: []string{"d"}}
	for i := range uint32(originalReadingsMax + 1) {
		b.Sensors = append(b.Sensors, "s"+strconv.Itoa(int(i)))
		b.Rows = append(b.Rows, telemetry.Row{Sensor: i, Time: t0, Received: t0, Value: float64(i)})
	}
	o := newOriginals(b)
	if m, ok := o.of(40).(map[string]any); !ok || len(m["sensors"].(map[string]any)) != len(b.Rows) {
		t.Errorf("the first letter holds %v", m)
	}
	if m := o.of(41); m != nil {
		t.Errorf("the second letter holds %v", m)
	}
	b.Rows = b.Rows[1:]
	o = newOriginals(b)
	if o.of(1) == nil || o.of(2) == nil {
		t.Error("a letter of a message of 64 readings is without it")
	}
}
