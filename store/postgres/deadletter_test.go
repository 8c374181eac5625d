package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"

	"github.com/sluice-iot/sluice/store/postgres/pgtest"
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
	b.Anomalies = []telemetry.Anomaly{{ID: "1-1-0", Device: "sensor-00001", Sensor: "x", Cause: "spike", Value: 3, Opened: t0, Closed: t0 + 5, Shares: "x 0.90, y 0.10", Wave: "1-2-w3", Normal: true}}
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
		if !errors.Is(err, ErrNoLetter) || isUnavailable(err) {
			t.Errorf("%s of a letter that is gone: %v", name, err)
		}
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != 4+int64(len(b.Rows))-1 {
		t.Errorf("%d rows, want all but the dropped one", n)
	}
	if n := one[int64](t, url, "select count(*) from telemetry where value = $1", b.Rows[17].Value); n != 1 {
		t.Errorf("%d rows with the exact value", n)
	}
	if n := one[int64](t, url, "select (select count(*) from devices) + (select count(*) from anomalies where closed is not null and normal and shares like 'x 0.90%' and wave = '1-2-w3')"); n != 10 {
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

// published is a batch with one message of pump, whose readings are named 000, 001
// and so on and all have that value, and one of valve without a time.
func published(readings int) *telemetry.Batch {
	b := &telemetry.Batch{Shard: 1, From: 1, To: 2, Term: 3, Messages: 2, Devices: []string{"pump", "valve"}}
	pump := &telemetry.Source{ID: "1-2-0", Message: telemetry.Message{
		Device: "pump", Time: t0, Received: t0 + 5, Nulls: 3, Attributes: []telemetry.Attribute{{Key: "site", Value: "n\x001"}},
	}}
	for i := range readings {
		name := fmt.Sprintf("%03d", i)
		b.Sensors = append(b.Sensors, name)
		b.Rows = append(b.Rows, telemetry.Row{Sensor: uint32(i), Time: t0, Received: t0 + 5, Value: float64(i)})
		pump.Message.Readings = append(pump.Message.Readings, telemetry.Reading{Sensor: name, Value: telemetry.Value{Kind: telemetry.KindDecimal, Mantissa: int64(i) * 100, Scale: 2}})
	}
	b.Rows = append(b.Rows, telemetry.Row{Device: 1, Time: t0 + 5, Received: t0 + 5, Value: 1000, Quality: telemetry.QualityReceiptTime})
	valve := &telemetry.Source{ID: "1-2-1", Message: telemetry.Message{
		Device: "valve", Time: t0 + 5, Received: t0 + 5, NoTime: true, Dup: telemetry.DupKey{1, 2},
		Readings: []telemetry.Reading{{Sensor: "000", Value: telemetry.FloatValue(1000)}, {Sensor: "on", Value: telemetry.Value{Kind: telemetry.KindBool, Mantissa: 1}}},
	}}
	b.Sources = func(rows []int, give func(int, *telemetry.Source) error) error {
		slices.Sort(rows)
		for _, i := range rows {
			s := pump
			if i == readings {
				s = valve
			}
			if err := give(i, s); err != nil {
				return err
			}
		}
		return nil
	}
	return b
}

// refuse writes a batch of which a constraint refuses values from least on, and
// returns the letters, oldest first.
func refuse(t *testing.T, s *pgtest.Server, db *DB, url string, b *telemetry.Batch, least int) []DeadLetter {
	t.Helper()
	write(t, db, fleet(1, 0, 1, 1, 1, t0))
	s.Exec(t, url, fmt.Sprintf("alter table telemetry add constraint plausible check (device_id like 'sensor-%%' or value < %d)", least))
	write(t, db, b)
	letters, err := db.DeadLetters(t.Context(), LetterQuery{From: math.MinInt64, To: math.MaxInt64, Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(letters)
	return letters
}

type shownMessage struct {
	ID      string `json:"message_id"`
	Key     string `json:"message_key"`
	Nulls   int    `json:"message_nulls"`
	Message struct {
		Device    string                     `json:"device_id"`
		Timestamp string                     `json:"timestamp"`
		Metadata  map[string]string          `json:"metadata"`
		Sensors   map[string]json.RawMessage `json:"sensors"`
	} `json:"message"`
}

func shown(t *testing.T, l DeadLetter) (m shownMessage) {
	t.Helper()
	if err := json.Unmarshal(l.Content, &m); err != nil {
		t.Fatalf("%s: %v", l.Content, err)
	}
	return m
}

// TestALetterHoldsTheMessage as it was published: its id, readings that were
// stored, digits, a truth value, attributes, and nothing of other messages.
func TestALetterHoldsTheMessage(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url))
	letters := refuse(t, s, db, url, published(3), 2)
	if len(letters) != 2 {
		t.Fatalf("%+v", letters)
	}
	pump, valve := shown(t, letters[0]), shown(t, letters[1])
	if pump.ID != "1-2-0" || pump.Key != "" || pump.Nulls != 3 || pump.Message.Device != "pump" || pump.Message.Timestamp != timeText(t0) ||
		pump.Message.Metadata["site"] != "n\ufffd1" || len(pump.Message.Sensors) != 3 || string(pump.Message.Sensors["001"]) != "1.00" {
		t.Errorf("pump: %+v", pump)
	}
	if valve.ID != "1-2-1" || valve.Key != "01020000000000000000000000000000" || valve.Message.Timestamp != "" || valve.Message.Metadata != nil ||
		string(valve.Message.Sensors["on"]) != "true" || string(valve.Message.Sensors["000"]) != "1000" {
		t.Errorf("valve: %+v", valve)
	}
	s.Exec(t, url, "alter table telemetry drop constraint plausible")
	for _, l := range letters {
		if err := db.ReplayDeadLetter(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
	}
	if n := one[int64](t, url, "select count(*) from telemetry where device_id in ('pump', 'valve')"); n != 4 {
		t.Errorf("%d rows after the replay, want 4, each once", n)
	}
	if n := one[int64](t, url, "select count(*) from dead_messages"); n != 0 {
		t.Errorf("%d messages without a letter", n)
	}
}

// TestEveryLetterOfALongMessageFindsIt: it is stored once, listed once a page, and
// there for as long as one of its letters is.
func TestEveryLetterOfALongMessageFindsIt(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url))
	const readings = 1000
	letters := refuse(t, s, db, url, published(readings), 100)
	if len(letters) != readings-100+1 {
		t.Fatalf("%d letters", len(letters))
	}
	held := 0
	for _, l := range letters[:readings-100] {
		m := shown(t, l)
		if m.ID != "1-2-0" {
			t.Fatalf("%s", l.Content)
		}
		if len(m.Message.Sensors) == readings {
			held++
		}
	}
	if held != 1 {
		t.Errorf("%d letters of the list repeat the message", held)
	}
	for _, i := range []int{0, 500, readings - 101} {
		if l, err := db.DeadLetter(t.Context(), letters[i].ID); err != nil || len(shown(t, l).Message.Sensors) != readings {
			t.Errorf("letter %d: %s, %v", i, l.Content, err)
		}
	}
	var wg sync.WaitGroup
	for _, l := range letters[:readings-101] {
		if l.ID%8 > 0 { // few are taken by several at once
			if err := db.DropDeadLetter(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
			continue
		}
		wg.Go(func() {
			if err := db.DropDeadLetter(context.WithoutCancel(t.Context()), l.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if l, err := db.DeadLetter(t.Context(), letters[readings-101].ID); err != nil || len(shown(t, l).Message.Sensors) != readings {
		t.Errorf("the last letter: %s, %v", l.Content, err)
	}
	if err := errors.Join(db.DropDeadLetter(t.Context(), letters[readings-101].ID), db.DropDeadLetter(t.Context(), letters[readings-100].ID)); err != nil {
		t.Fatal(err)
	}
	if n := one[int64](t, url, "select (select count(*) from dead_messages) + (select count(*) from dead_letters)"); n != 0 {
		t.Errorf("%d are left", n)
	}
	if _, err := db.DeadLetter(t.Context(), letters[0].ID); !errors.Is(err, ErrNoLetter) {
		t.Errorf("a letter that is gone: %v", err)
	}
}

// TestABatchThatFindsNoMessagesIsTriedAgain: its rows are stored when they can be
// told whole, never half.
func TestABatchThatFindsNoMessagesIsTriedAgain(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url))
	write(t, db, fleet(1, 0, 1, 1, 1, t0))
	s.Exec(t, url, "alter table telemetry add constraint plausible check (device_id like 'sensor-%' or value < 2)")
	b := published(3)
	find, away := b.Sources, errors.New("the log is closed")
	b.Sources = func([]int, func(int, *telemetry.Source) error) error { return away }
	if err := db.Write(t.Context(), b); !errors.Is(err, away) {
		t.Fatal(err)
	}
	if n := one[int64](t, url, "select (select count(*) from telemetry where device_id = 'pump') + (select count(*) from dead_letters)"); n != 0 {
		t.Fatalf("%d rows of a batch that failed", n)
	}
	b.Sources = find
	write(t, db, b)
	if n := one[int64](t, url, "select count(*) from dead_letters"); n != 2 {
		t.Errorf("%d letters", n)
	}
}
