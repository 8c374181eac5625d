package shard

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// crowd is a state machine with many devices of four sensors each, and a log
// behind it that goes on.
type crowd struct {
	*fsm
	devices    int
	seq, index uint64
}

func newCrowd(tb tester, devices int) *crowd {
	c := &crowd{fsm: &fsm{machine: newMachine(3, testDetector()), applied: func([]Event, session.Effects) {}}, devices: devices}
	for at := 0; at < devices; at += 512 {
		c.apply(c.entry(tb, at, 512, 1))
		_, _ = c.pending.flushed(telemetry.LaneLive, c.index, telemetry.Gap{})
	}
	return c
}

// entry is the next block: messages of devices from, from+step, ...
func (c *crowd) entry(tb tester, from, n, step int) *raft.Log {
	c.seq++
	c.index++
	ms := make([]telemetry.Message, n)
	for i := range ms {
		ms[i] = section3((from+i*step)%c.devices, int(c.seq))
	}
	return &raft.Log{Index: c.index, Term: 1, Data: encode(tb, block.Header{Origin: "n0.00000001", Epoch: 1, Seq: c.seq, Shard: 3}, ms...)}
}

func (c *crowd) apply(l *raft.Log) { c.ApplyBatch([]*raft.Log{l}) }

// BenchmarkPauseOfSnapshot is how long a shard's state machine stands still while
// a snapshot is taken and written: the longest call of Apply or Snapshot, which
// raft runs on one goroutine, by the clock and in CPU time of its thread (which
// other programs do not lengthen). Blocks of 256 messages of devices all over
// the state arrive every 5 ms.
func BenchmarkPauseOfSnapshot(b *testing.B) {
	for _, devices := range []int{20_000, 200_000} {
		b.Run(fmt.Sprintf("devices=%d", devices), func(b *testing.B) {
			c := newCrowd(b, devices)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var calls, cpu []time.Duration
			call := func(f func()) {
				began, used := time.Now(), cpuTime(b, unix.RUSAGE_THREAD)
				f()
				calls, cpu = append(calls, time.Since(began)), append(cpu, cpuTime(b, unix.RUSAGE_THREAD)-used)
			}
			var heap uint64
			var took time.Duration
			b.ResetTimer()
			for range b.N {
				began := time.Now()
				var snap raft.FSMSnapshot
				var err error
				call(func() { snap, err = c.Snapshot() })
				if err != nil {
					b.Fatal(err)
				}
				written := make(chan error, 1)
				go func() { written <- writeFile(filepath.Join(b.TempDir(), "state.bin"), snap.(*snapshot)) }()
				for open := true; open; {
					select {
					case err := <-written:
						if err != nil {
							b.Fatal(err)
						}
						took += time.Since(began)
						snap.Release()
						open = false
					case <-time.After(5 * time.Millisecond):
						l := c.entry(b, int(c.index*7919), 256, devices/256)
						call(func() { c.apply(l) })
					}
				}
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				heap = max(heap, m.HeapSys)
				_, _ = c.pending.flushed(telemetry.LaneLive, c.index, telemetry.Gap{})
			}
			slices.Sort(calls)
			b.ReportMetric(slices.Max(cpu).Seconds()*1e3, "cpu-ms-longest")
			b.ReportMetric(calls[len(calls)-1].Seconds()*1e3, "ms-longest")
			b.ReportMetric(calls[len(calls)/2].Seconds()*1e3, "ms-median")
			b.ReportMetric(took.Seconds()/float64(b.N), "s/snapshot")
			b.ReportMetric(float64(heap)/(1<<20), "MiB-heap")
		})
	}
}

func cpuTime(b *testing.B, who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func writeFile(path string, s *snapshot) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.write(f)
}

// BenchmarkCollect is what the garbage collector works for one shard's state of
// a million series, per collection.
func BenchmarkCollect(b *testing.B) {
	c := newCrowd(b, 250_000)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	used := cpuTime(b, unix.RUSAGE_SELF)
	b.ResetTimer()
	for range b.N {
		runtime.GC()
	}
	b.StopTimer()
	used = cpuTime(b, unix.RUSAGE_SELF) - used
	runtime.ReadMemStats(&after)
	b.ReportMetric(used.Seconds()*1e3/float64(b.N), "cpu-ms/collection")
	b.ReportMetric(float64(after.HeapObjects), "objects")
	b.ReportMetric(float64(after.HeapAlloc)/(1<<20), "MiB-live")
	runtime.KeepAlive(c)
}
