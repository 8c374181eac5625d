package postgres

import (
	"context"
	"encoding/json"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// upsertMax is how many rows one upsert holds: enough to make the round trip
// cheap, and 16 MiB when every device has as many attributes as it may.
const upsertMax = 1000

// upsertDevices stores the last state of devices. Times only widen: a database
// that fell back to an older state gets the same rows once more.
func (w *writer) upsertDevices(ctx context.Context, lo, hi int) error {
	n := hi - lo
	ids, attributes := make([]string, n), make([]string, n)
	first, last := make([]time.Time, n), make([]time.Time, n)
	for i, u := range w.updates[lo:hi] {
		ids[i], attributes[i] = u.Device, attributesJSON(u.Attributes)
		first[i], last[i] = time.UnixMicro(u.FirstSeen), time.UnixMicro(u.LastSeen)
	}
	_, err := w.exec(ctx, upsertDevices, ids, attributes, first, last)
	return err
}

// upsertDevices compares with what is there before it replaces it: all parts of
// the statement see the tables as they were. A change that is repeated, after a
// database that fell back got its rows once more, has the same key.
const upsertDevices = `with u as (
		select device_id, attributes::jsonb as attributes, first_seen, last_seen
		from unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[]) as u(device_id, attributes, first_seen, last_seen)
	), changes as (
		insert into device_changes (device_id, attribute, value, changed)
		select u.device_id, c.key, c.value, u.last_seen
		from u left join devices d using (device_id)
		cross join lateral (
			select key, n.value, o.value as before
			from jsonb_each_text(u.attributes) n full join jsonb_each_text(d.attributes) o using (key)) c
		where u.attributes is distinct from d.attributes and c.value is distinct from c.before
		on conflict (device_id, attribute, changed) do update set value = excluded.value
	)
	insert into devices as d (device_id, attributes, first_seen, last_seen)
	select device_id, attributes, first_seen, last_seen from u
	on conflict (device_id) do update set attributes = excluded.attributes,
	first_seen = least(d.first_seen, excluded.first_seen), last_seen = greatest(d.last_seen, excluded.last_seen)`

// attributesJSON is an object of texts.
func attributesJSON(list []telemetry.Attribute) string {
	m := make(map[string]string, len(list))
	for _, a := range list {
		m[a.Key] = a.Value
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "{}" // a map of strings: it cannot happen
	}
	return string(b)
}

func (w *writer) upsertAnomalies(ctx context.Context, lo, hi int) error {
	n := hi - lo
	var texts [6][]string // id, device, sensor, cause, shares, wave
	for i := range texts {
		texts[i] = make([]string, n)
	}
	var numbers [5][]float64 // severity, value, expected, low, high
	for i := range numbers {
		numbers[i] = make([]float64, n)
	}
	opened, closed, normal := make([]time.Time, n), make([]*time.Time, n), make([]bool, n)
	for i, a := range w.anomalies[lo:hi] {
		texts[0][i], texts[1][i], texts[2][i], texts[3][i] = a.ID, a.Device, a.Sensor, a.Cause
		texts[4][i], texts[5][i], normal[i] = a.Shares, a.Wave, a.Normal
		numbers[0][i], numbers[1][i], numbers[2][i], numbers[3][i], numbers[4][i] = a.Severity, a.Value, a.Expected, a.Low, a.High
		opened[i] = time.UnixMicro(a.Opened)
		if a.Closed != 0 {
			t := time.UnixMicro(a.Closed)
			closed[i] = &t
		}
	}
	_, err := w.exec(ctx, upsertAnomalies,
		w.cluster, texts[0], texts[1], texts[2], texts[3], numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], opened, closed, texts[4], texts[5], normal)
	return err
}

const upsertAnomalies = `insert into anomalies (cluster, id, device_id, sensor, cause, severity, value, expected, low, high, opened, closed, shares, wave, normal)
	select $1, id, device_id, sensor, cause, severity, value, expected, low, high, opened, closed, shares, nullif(wave, ''), normal
	from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::float8[], $8::float8[], $9::float8[], $10::float8[],
		$11::timestamptz[], $12::timestamptz[], $13::text[], $14::text[], $15::bool[])
	as u(id, device_id, sensor, cause, severity, value, expected, low, high, opened, closed, shares, wave, normal)
	on conflict (cluster, id) do update set device_id = excluded.device_id, sensor = excluded.sensor, cause = excluded.cause,
	severity = excluded.severity, value = excluded.value, expected = excluded.expected, low = excluded.low, high = excluded.high,
	opened = excluded.opened, closed = excluded.closed, shares = excluded.shares, wave = excluded.wave, normal = excluded.normal`
