package shard

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
	"github.com/sluice-iot/sluice/wal"
)

// steady is one replica of a shard at a steady load, without the network: the
// log, the state machine and the files of its snapshots are the real ones.
type steady struct {
	*fsm
	devices, block int
	every, lag     int64 // microseconds between the messages of a device, and from receipt to the store
	reg            *prometheus.Registry
	wal            *wal.Log
	log            *wal.Group
	rng            *rand.Rand
	next           int // device
	at             int64
	received       []int64 // by entry
	batch          []*raft.Log
	blocks         int64 // bytes
}

func newSteady(tb testing.TB, devices, perBlock int, every, lag int64) *steady {
	s := &steady{devices: devices, block: perBlock, every: every, lag: lag, reg: prometheus.NewRegistry(), rng: rand.New(rand.NewPCG(1, 2)), at: epoch2026}
	var err error
	if s.wal, err = wal.Open(quiet(), s.reg, wal.Config{Dir: filepath.Join(tb.TempDir(), "wal"), Node: "n0.00000001"}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.wal.Close(); err != nil {
			tb.Error(err)
		}
	})
	s.log = s.wal.Group(GroupOf(3))
	s.fsm = &fsm{machine: newMachine(3, testDetector()), logs: s.log, applied: func([]Event, session.Effects) {}}
	return s
}

// message is one of a fleet whose values swing over the day and are noisy.
func (s *steady) message(device int, at int64) telemetry.Message {
	phase := float64(at)/600e6 + float64(device)
	value := func(mean, swing, noise float64, scale uint8) telemetry.Value {
		return telemetry.Value{Kind: telemetry.KindDecimal, Mantissa: int64(mean + swing*math.Sin(phase) + noise*s.rng.NormFloat64()), Scale: scale}
	}
	return telemetry.Message{
		Device: fmt.Sprintf("sensor-%06d", device), Time: at + s.rng.Int64N(50_000), Received: at + 60_000 + s.rng.Int64N(9_000),
		Readings: []telemetry.Reading{
			{Sensor: "temperature", Value: value(2152+float64(device%300), 300, 8, 2)}, {Sensor: "humidity", Value: value(481, 50, 3, 1)},
			{Sensor: "pressure", Value: value(10132, 20, 3, 1)}, {Sensor: "battery", Value: value(935, 0, 1, 1)},
		},
		Attributes: []telemetry.Attribute{{Key: "firmware_version", Value: "1.2.3"}, {Key: "signal_strength", Value: fmt.Sprint(-61 - s.rng.IntN(5))}},
	}
}

// entriesPerCommit is how many entries share a sync: with 24 shards it is more.
const entriesPerCommit = 8

// step publishes one block, and stores what is due.
func (s *steady) step(tb testing.TB) {
	ms := make([]telemetry.Message, s.block)
	for i := range ms {
		ms[i] = s.message(s.next, s.at)
		s.at += s.every / int64(s.devices)
		s.next = (s.next + 1) % s.devices
	}
	index := uint64(len(s.received) + 1)
	l := &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: encode(tb, block.Header{Origin: "n0.00000001", Epoch: 1, Seq: index, Shard: 3}, ms...)}
	s.received, s.batch, s.blocks = append(s.received, s.at), append(s.batch, l), s.blocks+int64(len(l.Data))
	if len(s.batch) < entriesPerCommit {
		return
	}
	if err := s.log.StoreLogs(s.batch); err != nil {
		tb.Fatal(err)
	}
	s.ApplyBatch(s.batch)
	s.batch = s.batch[:0]
	stored := s.pending.durable
	for stored < index && s.received[stored] <= s.at-s.lag {
		stored++
	}
	_, _ = s.pending.flushed(telemetry.LaneLive, stored, telemetry.Gap{})
}

// snapshot takes one if it is due and truncates the log; it returns its size.
func (s *steady) snapshot(tb testing.TB, last uint64) (size int64) {
	cost := min(s.sizes.whole.Load(), s.sizes.state.Load()+s.log.BytesSince(s.pending.durable))
	if !snapshotDue(s.log.BytesSince(last), snapshotLogBytes, cost) {
		return 0
	}
	path := filepath.Join(tb.TempDir(), "state.bin")
	snap, err := s.Snapshot()
	if err != nil {
		tb.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := snap.(*snapshot).write(f); err != nil {
		tb.Fatal(err)
	}
	snap.Release()
	st, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	s.sizes.whole.Store(st.Size())
	if err := os.Remove(path); err != nil {
		tb.Fatal(err)
	}
	s.log.SetFloor(s.pending.durable)
	first, err := s.log.FirstIndex()
	if err != nil {
		tb.Fatal(err)
	}
	if to := s.index - min(s.index, trailingLogs); to > first {
		if err := s.log.DeleteRange(first, to); err != nil {
			tb.Fatal(err)
		}
	}
	return st.Size()
}

func (s *steady) logBytes(tb testing.TB) float64 {
	fs, err := s.reg.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range fs {
		if f.GetName() == "sluice_wal_written_bytes_total" {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	tb.Fatal("the log has no counter of written bytes")
	return 0
}

// BenchmarkWriteAmplification is what one replica writes for each byte of blocks
// at steady state, log and snapshots, counted between two snapshots b.N apart.
// 8,333 devices are one shard of 200,000 devices in 24. A message of a device
// comes every 10 s; it is in the store after a minute (embedded) or a second
// (database).
func BenchmarkWriteAmplification(b *testing.B) {
	for _, c := range []struct {
		devices, block int
		lag            int64
	}{{50, 256, 60}, {8333, 256, 60}, {8333, 256, 1}, {8333, 21, 60}} {
		b.Run(fmt.Sprintf("devices=%d/block=%d/lag=%ds", c.devices, c.block, c.lag), func(b *testing.B) {
			s := newSteady(b, c.devices, c.block, 10*second, c.lag*second)
			var last uint64
			until := func() int64 {
				for {
					s.step(b)
					if size := s.snapshot(b, last); size > 0 {
						last = s.index
						return size
					}
				}
			}
			until()
			until() // the first is taken of a state that still grows
			blocks, written, messages := s.blocks, s.logBytes(b), len(s.received)
			var snaps int64
			b.ResetTimer()
			for range b.N {
				snaps += until()
			}
			b.StopTimer()
			n := float64(s.blocks - blocks)
			written = s.logBytes(b) - written
			b.ReportMetric(written/n, "log/blocks")
			b.ReportMetric(float64(snaps)/n, "snapshots/blocks")
			b.ReportMetric((written+float64(snaps))/n, "amplification")
			b.ReportMetric(float64(snaps)/float64(b.N)/(1<<20), "MiB/snapshot")
			b.ReportMetric(n/float64((len(s.received)-messages)*s.block), "block-B/message")
		})
	}
}

// TestBlocksOfOneMessageCostLittleLog: what one replica writes for each byte of
// blocks of one or two messages, each appended by itself with a commit index, deep
// in the life of a shard whose numbers have many digits. Snapshots add one part in
// snapshotRatio.
func TestBlocksOfOneMessageCostLittleLog(t *testing.T) {
	for _, messages := range []int{1, 2} {
		s := newSteady(t, 50, messages, 10*second, 60*second)
		before := s.logBytes(t)
		var blocks int64
		for i := range uint64(400) {
			ms := make([]telemetry.Message, messages)
			for j := range ms {
				ms[j] = s.message(int(i)%s.devices, s.at)
				s.at += 10 * second / 50
			}
			data := encode(t, block.Header{Origin: "n0.00000001", Epoch: 1 << 20, Seq: 1<<30 + i, Shard: 3}, ms...)
			index := 1<<40 + i
			if err := s.log.StageCommitIndex(index - 2); err != nil {
				t.Fatal(err)
			}
			if err := s.log.StoreLogs([]*raft.Log{{Index: index, Term: 1000, Type: raft.LogCommand, Data: data, AppendedAt: time.Unix(1, 0)}}); err != nil {
				t.Fatal(err)
			}
			blocks += int64(len(data))
		}
		log := (s.logBytes(t) - before) / float64(blocks)
		whole := log * (1 + 1/float64(snapshotRatio))
		t.Logf("blocks of %d messages, %d bytes: the log writes %.3f, with snapshots %.3f bytes per byte", messages, blocks/400, log, whole)
		if whole > 1.3 {
			t.Errorf("blocks of %d messages: %.3f bytes are written per byte, want at most 1.3", messages, whole)
		}
	}
}
