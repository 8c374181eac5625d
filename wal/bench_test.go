package wal

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	dto "github.com/prometheus/client_model/go"
)

// BenchmarkStoreLogs appends entries of 2 KiB from many groups with real syncs.
// Each group has one caller, as in raft, that stores batches of as many entries
// as raft would have gathered.
func BenchmarkStoreLogs(b *testing.B) {
	for _, c := range []struct {
		groups, batch int
		encrypt       bool
	}{{1, 1, false}, {1, 16, false}, {24, 1, false}, {24, 8, false}, {24, 64, false}, {24, 8, true}, {24, 64, true}} {
		b.Run(fmt.Sprintf("groups=%d/batch=%d/encrypted=%v", c.groups, c.batch, c.encrypt), func(b *testing.B) {
			benchStore(b, c.groups, c.batch, c.encrypt)
		})
	}
}

func benchStore(b *testing.B, groups, batch int, encrypt bool) {
	l, err := Open(quiet, nil, Config{Dir: b.TempDir(), Encrypt: encrypt, Keys: testKeys})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	waitReady(l)
	data := make([]byte, 2048)
	var left atomic.Int64
	left.Store(int64(b.N))
	first, before := l.w.commit, written(b, l)
	b.SetBytes(2048)
	b.ResetTimer()
	cpu := cpuTime(b)
	var wg sync.WaitGroup
	for id := range uint32(groups) {
		wg.Go(func() {
			g := l.Group(id)
			g.SetFloor(math.MaxUint64)
			for next := uint64(1); left.Add(-int64(batch)) > -int64(batch); {
				logs := make([]*raft.Log, batch)
				for i := range logs {
					logs[i] = &raft.Log{Index: next, Term: 1, Data: data}
					next++
				}
				if err := g.StoreLogs(logs); err != nil {
					b.Error(err)
					return
				}
				if next%4096 < uint64(batch) && next > 4096 {
					if err := g.DeleteRange(1, next-2048); err != nil {
						b.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(cpuTime(b)-cpu)/1000/float64(b.N), "cpu-us/entry")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric((written(b, l)-before)/2048/float64(b.N), "written/entry-byte")
	b.ReportMetric(float64(b.N)/float64(max(1, l.w.commit-first)), "entries/commit")
}

// written is what the log has written: records of every kind, relocations too.
func written(b *testing.B, l *Log) float64 {
	var m dto.Metric
	if err := l.metrics.written.Write(&m); err != nil {
		b.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// cpuTime is what this process has used, user and system.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSeal measures what encryption adds to one record.
func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{128, 2 << 10, 6 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := &segment{}
			if err := s.encrypt(testKeys[0]); err != nil {
				b.Fatal(err)
			}
			plain := appendRecord(nil, s.key, &record{typ: typeEntry, body: make([]byte, size)})
			plain = plain[:binary.LittleEndian.Uint32(plain[recordLengthStart:])]
			var disk, back []byte
			b.Run("seal", func(b *testing.B) {
				b.SetBytes(int64(size))
				for b.Loop() {
					disk = s.seal(disk[:0], plain)
				}
			})
			b.Run("unseal", func(b *testing.B) {
				b.SetBytes(int64(size))
				for b.Loop() {
					var err error
					if back, err = s.unseal(back, disk[:len(plain)+sealOverhead], 0); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func waitReady(l *Log) {
	for {
		if n, _ := l.prep.stock(); n > reserveSegments {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// BenchmarkOpen measures recovery of a log of entries of 2 KiB in 24 groups, from
// the page cache: the disk adds what reading takes it.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{256 << 20, 1 << 30} {
		for _, encrypt := range []bool{false, true} {
			b.Run(fmt.Sprintf("MiB=%d/encrypted=%v", size>>20, encrypt), func(b *testing.B) { benchOpen(b, size, encrypt) })
		}
	}
}

func benchOpen(b *testing.B, total int, encrypt bool) {
	cfg := Config{Dir: b.TempDir(), Encrypt: encrypt, Keys: testKeys}
	const groups, size = 24, 2048
	fill(b, cfg, groups, total/size/groups, 128, size)
	b.SetBytes(int64(total))
	for b.Loop() {
		l, err := Open(quiet, nil, cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// fill writes a log of entries of one size, the groups beside each other and several
// entries at a time.
func fill(b *testing.B, cfg Config, groups uint32, entries, together, size int) {
	b.Helper()
	l, err := Open(quiet, nil, cfg)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, size)
	var wg sync.WaitGroup
	for id := range groups {
		wg.Go(func() {
			for next := uint64(1); next <= uint64(entries); {
				logs := make([]*raft.Log, together)
				for i := range logs {
					logs[i] = &raft.Log{Index: next, Term: 1, Data: data}
					next++
				}
				if err := l.Group(id).StoreLogs(logs); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
}

// coldEntries of 200 bytes in each of coldGroups groups are some 500 MiB of log.
const (
	coldGroups  = 24
	coldEntries = 80_000
)

// coldLog is a log as an outage of the database leaves it: entries of one message
// in all groups by turns. Afterwards, and when it is opened again, none is cached.
func coldLog(b *testing.B, cfg Config) {
	fill(b, cfg, coldGroups, coldEntries, 16, 200)
}

// BenchmarkOldEntries opens a log of entries that are small and many, and reads all
// of a group's one after the other, with the index in memory and on the shelf.
func BenchmarkOldEntries(b *testing.B) {
	dir := b.TempDir()
	coldLog(b, Config{Dir: dir})
	for _, c := range []struct {
		name  string
		bytes int64
	}{{"memory", 1 << 30}, {"shelf", DefaultIndexBytes}, {"shelf-at-once", 1}} {
		cfg := Config{Dir: dir, IndexBytes: c.bytes, ScrubBytesPerSecond: -1}
		b.Run(c.name+"/open", func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				before, cpu := heapBytes(), cpuTime(b)
				b.StartTimer()
				l, err := Open(quiet, nil, cfg)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				b.ReportMetric(float64((cpuTime(b) - cpu).Milliseconds()), "cpu-ms/op")
				b.ReportMetric((heapBytes()-before)/coldGroups/coldEntries, "heap-B/entry")
				if err := l.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run(c.name+"/read", func(b *testing.B) {
			l, err := Open(quiet, nil, cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			i := uint64(0)
			cpu := cpuTime(b)
			for b.Loop() {
				var e raft.Log
				if err := l.Group(uint32(i%coldGroups)).GetLog(1+i/coldGroups%coldEntries, &e); err != nil {
					b.Fatal(err)
				}
				i++
			}
			b.ReportMetric(float64(cpuTime(b)-cpu)/1000/float64(b.N), "cpu-us/op")
		})
	}
}

// heapBytes is what the heap holds after a collection.
func heapBytes() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// BenchmarkGetLog reads entries from memory and from disk.
func BenchmarkGetLog(b *testing.B) {
	for _, cache := range []int64{1, 64 << 20} {
		b.Run(fmt.Sprintf("cache=%d", cache), func(b *testing.B) {
			l, err := Open(quiet, nil, Config{Dir: b.TempDir(), CacheBytes: cache})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			g := l.Group(1)
			for i := uint64(0); i < 10; i++ {
				if err := g.StoreLogs(entries(1, i*100+1, i*100+100, 1, 2048)); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(2048)
			b.ReportAllocs()
			i := uint64(0)
			for b.Loop() {
				var e raft.Log
				if err := g.GetLog(i%1000+1, &e); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}
