package shard

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
)

func queryAll(device string) store.Query {
	return store.Query{Device: device, From: math.MinInt64, To: math.MaxInt64, Limit: 1_000_000}
}

// TestBatchIsCanonicalAndReadsBackFromTheStore gives random, late and repeated
// readings to the real embedded store, which refuses a batch that is not
// canonical, and compares what it answers with what was pending.
func TestBatchIsCanonicalAndReadsBackFromTheStore(t *testing.T) {
	files, err := parquet.Open(quiet(), nil, parquet.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := files.Close(); err != nil {
			t.Error(err)
		}
	}()
	rnd := rand.New(rand.NewPCG(1, 2))
	r := newRig(t)
	devices := []string{"zeta", "alpha", "mid", "alpha-2"}
	for range 40 {
		var ms []telemetry.Message
		for range 1 + rnd.IntN(30) {
			m := message(devices[rnd.IntN(len(devices))], epoch2026+rnd.Int64N(300)*second)
			for _, s := range rnd.Perm(len(sensorNames))[:rnd.IntN(5)] {
				m.Readings = append(m.Readings, telemetry.Reading{Sensor: sensorNames[s], Value: telemetry.FloatValue(float64(rnd.IntN(4)))})
			}
			ms = append(ms, m)
		}
		r.block(ms...)
	}
	f := &flusher{shard: &Shard{id: 3, fsm: &fsm{machine: r.machine}}}
	want := map[string][]store.Point{}
	for _, d := range devices {
		if want[d], err = f.pendingPoints(slices.Values(r.pending.blocks), telemetry.Watermarks{}, queryAll(d)); err != nil {
			t.Fatal(err)
		}
	}
	for from := uint64(0); from < 40; from += 10 {
		if got := r.entry(flushEntry{From: from, To: from + 10}.encode()); got != nil {
			t.Fatal(got)
		}
		d := r.pending.decided[len(r.pending.decided)-1]
		b, err := f.batch(d.from, d.to, slices.Collect(r.pending.between(d.from, d.to).all()), bothLanes)
		if err != nil {
			t.Fatal(err)
		}
		b.Messages, b.Updates, b.Anomalies = d.messages, d.updates, d.anomalies
		if _, err := files.Write(context.Background(), b); err != nil {
			t.Fatalf("range (%d, %d]: %v", d.from, d.to, err)
		}
	}
	for _, d := range devices {
		got, _, err := files.Read(context.Background(), 3, 40, queryAll(d))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want[d]) {
			t.Fatalf("device %s: the store has %d points, pending were %d", d, len(got), len(want[d]))
		}
	}
}

func TestRowsOfOneSeriesAndTimeKeepTheOrderOfTheLog(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 3), message("d1", epoch2026+1, 9), message("d1", epoch2026, 2))
	r.block(message("d1", epoch2026, 1))
	f := &flusher{shard: &Shard{id: 3, fsm: &fsm{machine: r.machine}}}
	b, err := f.batch(0, 2, r.pending.blocks, bothLanes)
	if err != nil {
		t.Fatal(err)
	}
	var values []float64
	for _, row := range b.Rows {
		values = append(values, row.Value)
	}
	if !slices.Equal(values, []float64{3, 2, 1, 9}) {
		t.Fatalf("values %v, want 3 2 1 of the first time in log order, then 9", values)
	}
}
