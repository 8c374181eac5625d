package wal

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// TestRealFilesAreWhatTheFormatSays goes through the operator's view on the
// machine's own file system.
func TestRealFilesAreWhatTheFormatSays(t *testing.T) {
	node := t.TempDir()
	cfg := Config{Dir: filepath.Join(node, "wal"), Node: "n0.5f3a9c1e", Cluster: "c1", SegmentBytes: 1 << 20, ScrubBytesPerSecond: 1 << 30}
	reg := prometheus.NewRegistry()
	l, err := Open(quiet, reg, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(quiet, reg, Config{Dir: t.TempDir()}); err == nil {
		t.Error("two logs share a registry")
	}
	g := l.Group(4)
	mustStore(t, g, entries(4, 1, 1500, 3, 1000))
	if n := g.BytesSince(1400); n < 100*1000 || n > 110*1100 {
		t.Errorf("bytes since 1400: %d, want a little more than 100,000", n)
	}
	for _, i := range []uint64{1500, math.MaxUint64} {
		if n := g.BytesSince(i); n != 0 {
			t.Errorf("bytes since %d: %d", i, n)
		}
	}
	if _, err := Verify(node); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("verify of a log in use: %v, want ErrLocked", err)
	}
	waitFor(t, func() bool { // the scrubber has been through
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "sluice_wal_scrubbed_bytes_total" {
				return f.GetMetric()[0].GetCounter().GetValue() > 0
			}
		}
		t.Fatal("no counter of the scrubber")
		return false
	})
	mustClose(t, l)
	for _, dir := range []string{node, cfg.Dir} {
		rep, err := Verify(dir)
		if err != nil || rep.Entries != 1500 || rep.Node != cfg.Node || len(rep.Damage) != 0 {
			t.Errorf("verify %s: %+v, %v", dir, rep, err)
		}
	}
	st, err := Stat(node)
	if err != nil || len(st.Groups) != 1 || st.Groups[0].Last != 1500 || st.Segments[0].State != "sealed" {
		t.Errorf("stat: %+v, %v", st, err)
	}
	var out bytes.Buffer
	id := uint32(4)
	if err := Dump(&out, node, Filter{Group: &id, From: 7, To: 8, Data: true}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 2 || !strings.Contains(out.String(), "entry 8 term 3 LogCommand 1000 bytes") {
		t.Errorf("dump of two entries has %d lines:\n%.300s", n, out.String())
	}
	info, err := os.Stat(filepath.Join(cfg.Dir, segmentName(1)))
	if err != nil || info.Size() != 1<<20 || info.Mode().Perm() != 0o600 {
		t.Errorf("segment file %+v, %v", info, err)
	}
}

// TestSegmentSizeMayChange reopens with larger and smaller segments.
func TestSegmentSizeMayChange(t *testing.T) {
	fs := vfs.NewMem()
	next := uint64(1)
	for _, size := range []int64{16 << 10, 64 << 10, 8 << 10, 32 << 10} {
		cfg := memConfig(fs)
		cfg.SegmentBytes = size
		l := mustOpen(t, cfg)
		mustStore(t, l.Group(1), entries(1, next, next+99, 1, int(size/8)))
		next += 100
		if last, _ := l.Group(1).LastIndex(); last != next-1 {
			t.Errorf("last %d, want %d", last, next-1)
		}
		mustClose(t, l)
		if rep, err := verify(fs, "wal"); err != nil || rep.Entries != int64(next-1) {
			t.Errorf("verify: %+v, %v", rep.Entries, err)
		}
	}
}

func TestConfigReportsEveryProblem(t *testing.T) {
	cfg := Config{SegmentBytes: 5000, Node: strings.Repeat("x", 200), CacheBytes: -1, Linger: time.Second, SpareSegments: -1}
	err := cfg.Validate()
	for _, word := range []string{"Dir", "SegmentBytes", "Node", "CacheBytes", "Linger", "SpareSegments"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not mention %s", err, word)
		}
	}
}

// TestIndexAgreesWithAMap compares the index with the simplest thing.
func TestIndexAgreesWithAMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var x index
		m := map[uint64]location{}
		var first, last uint64
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			if last == 0 {
				first = uint64(rapid.IntRange(1, 3000).Draw(rt, "first"))
				last = first
			}
			switch rapid.IntRange(0, 4).Draw(rt, "kind") {
			case 0, 1:
				last += uint64(rapid.IntRange(0, 1500).Draw(rt, "more"))
			case 2:
				last = first + uint64(rapid.IntRange(0, int(last-first)).Draw(rt, "cut"))
			case 3:
				first += uint64(rapid.IntRange(0, int(last-first)).Draw(rt, "drop"))
			case 4:
				first, last = 0, 0
			}
			dropped := 0
			x.resize(first, last, func(location) { dropped++ })
			for i := range m {
				if last == 0 || i < first || i > last {
					delete(m, i)
					dropped--
				}
			}
			if dropped != 0 {
				rt.Fatalf("%d more dropped than there were", dropped)
			}
			for i := first; i <= last && last != 0; i++ {
				if _, ok := m[i]; !ok {
					m[i] = location{1, uint32(i), uint32(i % 100)}
					x.set(i, m[i])
				}
			}
			from := uint64(rapid.IntRange(0, 5000).Draw(rt, "from"))
			var want int64
			for i, loc := range m {
				if got := x.get(i); got != loc {
					rt.Fatalf("entry %d is at %v, want %v", i, got, loc)
				}
				if i >= from {
					want += int64(loc.size)
				}
			}
			if got := x.bytesFrom(from); got != want {
				rt.Fatalf("bytes from %d of %d..%d: %d, want %d", from, first, last, got, want)
			}
		}
	})
}
