package shard

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/store/postgres"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// timedStore notes how long live batches take.
type timedStore struct {
	SharedStore
	mu   sync.Mutex
	live []time.Duration
	late int // rows
}

func (s *timedStore) Write(ctx context.Context, b *telemetry.Batch) error {
	start := time.Now()
	err := s.SharedStore.Write(ctx, b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.Lane == telemetry.LaneLate {
		s.late += len(b.Rows)
	} else if err == nil && len(b.Rows) > 0 {
		s.live = append(s.live, time.Since(start))
	}
	return err
}

func (s *timedStore) take() (median, p90 time.Duration, n, late int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.live)
	n, late = len(s.live), s.late
	if n > 0 {
		median, p90 = s.live[n/2], s.live[n*9/10]
	}
	s.live, s.late = nil, 0
	return median, p90, n, late
}

// BenchmarkLiveFlushBesideABacklog measures the time that live batches take to be
// committed (2,000 messages of four sensors per second), without anything else
// and while the late lane brings a backlog of a day in, in turn.
func BenchmarkLiveFlushBesideABacklog(b *testing.B) {
	s := pgtest.Start(b, pgtest.Options{Durable: true})
	db, err := postgres.Open(quiet(), nil, postgres.Config{URL: s.Database(b), Cluster: func() string { return "c1" }})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	timed := &timedStore{SharedStore: db}
	r := newLaneRig(b, timed)
	for r.rows(telemetry.LaneLive) > 0 || db.Health() != nil { // it is migrating
		r.publish(1, 0)
		_ = r.flush(ctx, telemetry.LaneLive)
	}
	timed.take()
	const rounds, length = 3, 8 * time.Second
	var quietMedian, busyMedian []time.Duration
	lateRows := 0
	for range rounds {
		for _, backlog := range []bool{false, true} {
			if backlog {
				for range 1200 {
					r.publish(256, 24*3600*second)
				}
			}
			var late sync.WaitGroup
			end := time.Now().Add(length)
			if backlog {
				late.Go(func() {
					for time.Now().Before(end) && r.rows(telemetry.LaneLate) > 0 {
						_ = r.flush(ctx, telemetry.LaneLate)
					}
				})
			}
			for time.Now().Before(end) {
				next := time.Now().Add(500 * time.Millisecond)
				r.publish(1000, 0)
				_ = r.flush(ctx, telemetry.LaneLive)
				time.Sleep(time.Until(next))
			}
			late.Wait()
			median, p90, n, rows := timed.take()
			b.Logf("backlog %v: live batches %d, median %v, p90 %v; late rows %d", backlog, n, median, p90, rows)
			if backlog {
				busyMedian, lateRows = append(busyMedian, median), lateRows+rows
			} else {
				quietMedian = append(quietMedian, median)
			}
		}
	}
	slices.Sort(quietMedian)
	slices.Sort(busyMedian)
	b.ReportMetric(float64(quietMedian[rounds/2].Microseconds())/1e3, "alone-ms")
	b.ReportMetric(float64(busyMedian[rounds/2].Microseconds())/1e3, "beside-ms")
	b.ReportMetric(float64(lateRows)/(rounds*length.Seconds()), "late-rows/s")
	b.ReportMetric(0, "ns/op")
}

// laneRig is a machine with a flusher and without raft: what is flushed is applied
// at once.
type laneRig struct {
	*rig
	mu sync.Mutex // over the rig's log
	f  *flusher
	t  int64
}

func newLaneRig(b testing.TB, st SharedStore) *laneRig {
	r := &laneRig{rig: newRig(b), t: epoch2026}
	sh := &Shard{id: 3, logger: quiet(), metrics: newMetrics(nil), fsm: &fsm{machine: r.machine}}
	r.f = newFlusher(sh, FlushConfig{Interval: time.Millisecond, RowsMax: 100_000}, Stores{Shared: st}, newTurns(4), b.TempDir())
	return r
}

// publish applies one block of n messages that were measured lateness earlier.
func (r *laneRig) publish(n int, lateness int64) {
	var ms []telemetry.Message
	for k := range n {
		r.t += 100
		m := message(fmt.Sprintf("d%03d", k%250), r.t-lateness, float64(k), 48.1, 1013.2, 93.5)
		m.Received = r.t
		ms = append(ms, m)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq["n0.00000001"]++
	data := encode(r.tb, block.Header{Origin: "n0.00000001", Epoch: 1, Seq: r.seq["n0.00000001"], Shard: 3}, ms...)
	r.machine.mu.Lock()
	defer r.machine.mu.Unlock()
	r.entry(data)
}

func (r *laneRig) rows(l telemetry.Lane) uint64 {
	r.machine.mu.Lock()
	defer r.machine.mu.Unlock()
	return r.pending.rows[l]
}

// flush writes the next range of a lane as the leader does.
func (r *laneRig) flush(ctx context.Context, lane telemetry.Lane) error {
	l := &r.f.lanes[lane]
	due, ok := r.f.laneDue(l, time.Now().Add(time.Hour))
	if !ok {
		return nil
	}
	if err := r.f.write(ctx, l, due, func(b *telemetry.Batch) { b.Term = 1 }); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.machine.mu.Lock()
	defer r.machine.mu.Unlock()
	r.entry(flushedEntry(lane, due.to, telemetry.Gap{}))
	return nil
}
