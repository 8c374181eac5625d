package postgres

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
)

// TestRefusedRowsAreFound: what constraints, domains and triggers of the user
// refuse goes to dead_letters, everything else is stored, the watermark moves.
func TestRefusedRowsAreFound(t *testing.T) {
	const plausible = "alter table telemetry add constraint plausible check (value < 1000)"
	const trigger = `create function refuse() returns trigger language plpgsql as $$ begin
		if new.value >= 1000 then raise exception 'zu groß: %', new.value; end if; return new; end $$`
	for _, c := range []struct {
		name, state string
		rules       []string
	}{
		{"check constraint", "23514", []string{plausible}},
		{"trigger before", "P0001", []string{trigger, "create trigger refuse before insert on telemetry for each row execute function refuse()"}},
		{"trigger after", "P0001", []string{trigger, "create trigger refuse after insert on telemetry for each row execute function refuse()"}},
		{"deferred trigger", "P0001", []string{trigger, "create constraint trigger refuse after insert on telemetry deferrable initially deferred for each row execute function refuse()"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := server(t)
			url := s.Database(t)
			db := open(t, config(url))
			write(t, db, fleet(1, 0, 1, 1, 1, t0-1_000_000_000))
			s.Exec(t, url, c.rules...)
			from, rows, dead := uint64(1), int64(4), int64(0)
			rng := rand.New(rand.NewPCG(1, 2))
			for _, refused := range []int{0, 1, 2, 5, 40} {
				b := fleet(1, from, from+1, 40, 25, t0+int64(from)*100_000_000)
				chosen := rng.Perm(len(b.Rows))[:refused]
				if refused == 5 {
					chosen = []int{0, 1, 1023, 1024, len(b.Rows) - 1}
				}
				for _, i := range chosen {
					b.Rows[i].Value = 1000 + float64(i)
				}
				write(t, db, b)
				from, rows, dead = b.To, rows+int64(len(b.Rows)-refused), dead+int64(refused)
				if n := one[int64](t, url, "select count(*) from telemetry"); n != rows {
					t.Fatalf("%d refused: %d rows stored, want %d", refused, n, rows)
				}
				slices.Sort(chosen)
				got := ask[int64](t, url, `select (content->>'value')::float8::bigint - 1000 from dead_letters
					where from_index = $1 and kind = 'reading' and sqlstate = $2 and reason <> '' order by 1`, int64(b.From), c.state)
				want := make([]int64, refused)
				for i, n := range chosen {
					want[i] = int64(n)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("dead letters of rows %v, want %v", got, want)
				}
			}
			if w, err := live(context.Background(), db, 1); err != nil || w != from {
				t.Fatalf("watermark %d, %v", w, err)
			}
		})
	}
}

func TestRefusedDevicesAndAnomalies(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url))
	write(t, db, fleet(1, 0, 1, 1, 1, t0))
	s.Exec(t, url, "alter table devices add constraint known check (device_id <> 'sensor-00003')",
		"alter table anomalies add constraint cause check (cause <> 'spike')")
	b := fleet(1, 1, 2, 9, 1, t0)
	b.Anomalies = []telemetry.Anomaly{{ID: "1-1-0", Device: "sensor-00001", Cause: "spike", Value: 3}, {ID: "1-1-1", Device: "sensor-00001", Cause: "level"}}
	write(t, db, b)
	if n := one[int64](t, url, "select count(*) from devices"); n != 8 {
		t.Errorf("%d devices, want 8", n)
	}
	if n := one[int64](t, url, "select count(*) from anomalies"); n != 1 {
		t.Errorf("%d anomalies, want 1", n)
	}
	got := ask[string](t, url, "select kind || ' ' || device_id || ' ' || (content->>'device_id') || ' ' || coalesce(content->'attributes'->>'firmware_version', content->>'id') from dead_letters order by kind")
	if want := []string{"anomaly sensor-00001 sensor-00001 1-1-0", "device sensor-00003 sensor-00003 1.2.3"}; !slices.Equal(got, want) {
		t.Errorf("dead letters %q, want %q", got, want)
	}
}

// TestTextThatNoDatabaseTakes: the parser lets none of it through, but one row
// of it must not stop a shard.
func TestTextThatNoDatabaseTakes(t *testing.T) {
	url := server(t).Database(t)
	db := open(t, config(url))
	b := fleet(1, 0, 1, 2, 10, t0)
	b.Sensors[1], b.Sensors[2] = "nul\x00", "torn\xc3"
	write(t, db, b)
	if n := one[int64](t, url, "select count(*) from telemetry"); n != 40 {
		t.Errorf("%d rows stored, want 40", n)
	}
	if n := one[int64](t, url, "select count(*) from dead_letters where content->>'sensor' in (U&'nul\\FFFD', U&'torn\\FFFD')"); n != 40 {
		t.Errorf("%d dead letters, want 40", n)
	}
}
