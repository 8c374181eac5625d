package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quietTime = time.Unix(1767225600, 123456789)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// memConfig is a log of small segments in memory.
func memConfig(fs vfs.FS) Config {
	return Config{Dir: "wal", FS: fs, SegmentBytes: 16 << 10, ScrubBytesPerSecond: -1}
}

// testKeys are operator keys; all checks have them.
var testKeys = []Key{
	Key(bytes.Repeat([]byte{0xa1, 0x57}, keyBytes/2)), Key(bytes.Repeat([]byte{0xb2, 0x68}, keyBytes/2)), Key(bytes.Repeat([]byte{0xc3, 0x79}, keyBytes/2)),
}

// sealedConfig is memConfig with encryption.
func sealedConfig(fs vfs.FS) Config {
	c := memConfig(fs)
	c.Encrypt, c.Keys = true, testKeys[:1]
	return c
}

// inBothForms runs a test on logs in the clear and on encrypted ones.
func inBothForms(t *testing.T, test func(t *testing.T, config func(vfs.FS) Config)) {
	t.Run("plain", func(t *testing.T) { test(t, memConfig) })
	t.Run("encrypted", func(t *testing.T) { test(t, sealedConfig) })
}

func mustOpen(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(quiet, nil, cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// payload is recognisable and differs by group, index and term.
func payload(group uint32, index, term uint64, size int) []byte {
	rng := rand.New(rand.NewPCG(uint64(group)<<32|term, index))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func entries(group uint32, from, to, term uint64, size int) []*raft.Log {
	var logs []*raft.Log
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: payload(group, i, term, size)})
	}
	return logs
}

func mustStore(t testing.TB, g *Group, logs []*raft.Log) {
	t.Helper()
	if err := g.StoreLogs(logs); err != nil {
		t.Fatalf("store %d..%d: %v", logs[0].Index, logs[len(logs)-1].Index, err)
	}
}

// wantEntries checks the range and every entry in it.
func wantEntries(t testing.TB, g *Group, from, to, term uint64, size int) {
	t.Helper()
	first, err := g.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := g.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	if first != from || last != to {
		t.Fatalf("group %d has %d..%d, want %d..%d", g.id, first, last, from, to)
	}
	for i := from; i <= to && to != 0; i++ {
		var l raft.Log
		if err := g.GetLog(i, &l); err != nil {
			t.Fatalf("get %d: %v", i, err)
		}
		if l.Index != i || l.Term != term || !bytes.Equal(l.Data, payload(g.id, i, term, size)) {
			t.Fatalf("entry %d of group %d came back as index %d term %d, %d bytes", i, g.id, l.Index, l.Term, len(l.Data))
		}
	}
}

func TestEntriesSurviveReopen(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprintf("clean=%v", clean), func(t *testing.T) {
			fs := vfs.NewMem()
			l := mustOpen(t, memConfig(fs))
			a, b := l.Group(1), l.Group(2)
			mustStore(t, a, entries(1, 1, 40, 1, 300))
			mustStore(t, b, entries(2, 7, 60, 3, 300))
			if err := a.SetUint64([]byte("CurrentTerm"), 9); err != nil {
				t.Fatal(err)
			}
			wantEntries(t, a, 1, 40, 1, 300)
			disk := fs
			if clean {
				mustClose(t, l)
			} else {
				disk = fs.CrashClone(nil)
			}
			l = mustOpen(t, memConfig(disk))
			wantEntries(t, l.Group(1), 1, 40, 1, 300)
			wantEntries(t, l.Group(2), 7, 60, 3, 300)
			if v, err := l.Group(1).GetUint64([]byte("CurrentTerm")); v != 9 || err != nil {
				t.Errorf("term %d, %v, want 9", v, err)
			}
			if got := l.Groups(); len(got) != 2 {
				t.Errorf("groups %v, want 1 and 2", got)
			}
		})
	}
}

func TestEveryFieldOfAnEntryComesBack(t *testing.T) {
	fs := vfs.NewMem()
	cfg := memConfig(fs)
	cfg.CacheBytes = 1 // everything is read from disk
	l := mustOpen(t, cfg)
	g := l.Group(3)
	in := entries(3, 5, 6, 2, 10)
	in[0].Extensions = []byte("ext")
	in[0].Type = raft.LogConfiguration
	in[1].AppendedAt = quietTime // not stored
	in[1].Data = nil
	_ = g.StageCommitIndex(5)
	mustStore(t, g, in)
	for round := range 2 {
		for _, want := range in {
			var got raft.Log
			if err := g.GetLog(want.Index, &got); err != nil {
				t.Fatal(err)
			}
			if got.Type != want.Type || !bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.IsZero() {
				t.Errorf("round %d: got %+v, want %+v", round, got, *want)
			}
		}
		if c, err := g.GetCommitIndex(); c != 5 || err != nil {
			t.Errorf("commit index %d, %v, want 5", c, err)
		}
		if round == 0 { // once more from a relocated copy
			mustStore(t, l.Group(4), entries(4, 1, 30, 1, 1000))
			if err := l.janitor.rewrite(l.segment(1)); err != nil {
				t.Fatal(err)
			}
			if at := g.index.get(5).segment; at == 1 {
				t.Error("entry was not relocated")
			}
		}
		fs = fs.CrashClone(nil)
		l = mustOpen(t, memConfig(fs))
		g = l.Group(3)
	}
}

func TestErrorsAreWhatRaftExpects(t *testing.T) {
	l := mustOpen(t, memConfig(vfs.NewMem()))
	g := l.Group(1)
	var e raft.Log
	if err := g.GetLog(1, &e); err != raft.ErrLogNotFound {
		t.Errorf("get from an empty log: %v, want ErrLogNotFound", err)
	}
	mustStore(t, g, entries(1, 10, 20, 1, 10))
	if err := g.GetLog(9, &e); err != raft.ErrLogNotFound {
		t.Errorf("get below the first: %v, want ErrLogNotFound", err)
	}
	if err := g.GetLog(21, &e); !errors.Is(err, ErrBeyondLast) {
		t.Errorf("get beyond the last: %v, want ErrBeyondLast", err)
	}
	if _, err := g.Get([]byte("x")); err == nil || err.Error() != "not found" {
		t.Errorf("get of a missing key: %v, want the text raft compares with", err)
	}
	if v, err := g.GetUint64([]byte("x")); v != 0 || err != nil {
		t.Errorf("number of a missing key: %d, %v", v, err)
	}
	if err := g.StoreLogs(entries(1, 22, 23, 1, 10)); !errors.Is(err, ErrGap) {
		t.Errorf("store with a gap: %v, want ErrGap", err)
	}
	if err := g.StoreLogs(entries(1, 20, 20, 1, 10)); !errors.Is(err, ErrGap) {
		t.Errorf("store over the last: %v, want ErrGap", err)
	}
	if err := g.StoreLogs(entries(1, 21, 21, 1, 10<<10)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("store of a huge entry: %v, want ErrTooLarge", err)
	}
	if err := g.DeleteRange(12, 14); !errors.Is(err, ErrGap) {
		t.Errorf("delete in the middle: %v, want ErrGap", err)
	}
	wantEntries(t, g, 10, 20, 1, 10)
	mustClose(t, l)
	if err := g.StoreLogs(entries(1, 21, 21, 1, 10)); !errors.Is(err, ErrClosed) {
		t.Errorf("store after close: %v, want ErrClosed", err)
	}
	if err := g.GetLog(10, &e); !errors.Is(err, ErrClosed) {
		t.Errorf("get after close: %v, want ErrClosed", err)
	}
}

func TestConflictIsReplacedForGood(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, memConfig(fs))
	g := l.Group(1)
	mustStore(t, g, entries(1, 1, 30, 1, 100))
	if err := g.DeleteRange(11, 30); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, g, 1, 10, 1, 100)
	wantEntries(t, mustOpen(t, memConfig(fs.CrashClone(nil))).Group(1), 1, 10, 1, 100)
	mustStore(t, g, entries(1, 11, 15, 2, 100))
	for _, g := range []*Group{g, mustOpen(t, memConfig(fs.CrashClone(nil))).Group(1)} {
		if last, _ := g.LastIndex(); last != 15 {
			t.Errorf("last %d, want 15", last)
		}
		var e raft.Log
		if err := g.GetLog(11, &e); err != nil || e.Term != 2 {
			t.Errorf("entry 11 has term %d, %v, want the new one", e.Term, err)
		}
	}
}

func TestFloorProtectsFromCompaction(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, memConfig(fs))
	g := l.Group(1)
	mustStore(t, g, entries(1, 1, 50, 1, 100))
	g.SetFloor(20)
	if err := g.DeleteRange(1, 40); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, g, 21, 50, 1, 100)
	g.SetFloor(30)
	if err := l.janitor.maintain(); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, g, 31, 50, 1, 100)
	g.SetFloor(math.MaxUint64)
	if err := l.janitor.maintain(); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, g, 41, 50, 1, 100) // raft asked for no more
	l = mustOpen(t, memConfig(fs.CrashClone(nil)))
	wantEntries(t, l.Group(1), 41, 50, 1, 100)
	if f := l.Group(1).Floor(); f != math.MaxUint64 {
		t.Errorf("floor %d after reopen", f)
	}
}

// TestWholeDeletionIsJudgedByTheNextAppend covers what hashicorp/raft does after
// it installed a snapshot, with a conflict in the first entry, and with
// TrailingLogs 0.
func TestWholeDeletionIsJudgedByTheNextAppend(t *testing.T) {
	for _, c := range []struct {
		name        string
		next        uint64
		first, last uint64
	}{
		{"compaction", 31, 11, 31},
		{"snapshot beyond the log", 90, 90, 90},
		{"snapshot within the log", 25, 25, 25},
		{"conflict at the first entry", 1, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			g := mustOpen(t, memConfig(fs)).Group(1)
			mustStore(t, g, entries(1, 1, 30, 1, 100))
			g.SetFloor(10)
			if err := g.DeleteRange(1, 30); err != nil {
				t.Fatal(err)
			}
			for _, g := range []*Group{g, mustOpen(t, memConfig(fs.CrashClone(nil))).Group(1)} {
				if first, _ := g.FirstIndex(); first != 0 {
					t.Errorf("raft sees first %d after deleting everything", first)
				}
				if first, last := g.Retained(); first != 11 || last != 30 {
					t.Errorf("retained %d..%d, want 11..30", first, last)
				}
				var e raft.Log
				if err := g.GetLog(30, &e); err != nil {
					t.Errorf("a protected entry cannot be read: %v", err)
				}
			}
			mustStore(t, g, entries(1, c.next, c.next, 2, 100))
			for _, g := range []*Group{g, mustOpen(t, memConfig(fs.CrashClone(nil))).Group(1)} {
				first, _ := g.FirstIndex()
				last, _ := g.LastIndex()
				if first != c.first || last != c.last {
					t.Errorf("range %d..%d, want %d..%d", first, last, c.first, c.last)
				}
			}
		})
	}
}

func TestRemovedGroupStaysAway(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, memConfig(fs))
	g := l.Group(1)
	mustStore(t, g, entries(1, 1, 10, 1, 100))
	if err := g.Set([]byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
	other := l.Group(2)
	mustStore(t, other, entries(2, 1, 200, 1, 300)) // several segments
	l = mustOpen(t, memConfig(fs.CrashClone(nil)))
	if got := l.Groups(); len(got) != 1 || got[0] != 2 {
		t.Errorf("groups %v, want only 2", got)
	}
	wantEntries(t, l.Group(1), 0, 0, 0, 0)
}

func TestSegmentsAreRecycledAndStaleBytesStayDead(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, memConfig(fs))
	g := l.Group(1)
	g.SetFloor(math.MaxUint64)
	for i := uint64(1); i < 2000; i += 20 {
		mustStore(t, g, entries(1, i, i+19, 1, 200))
		if i > 60 {
			if err := g.DeleteRange(1, i-40); err != nil {
				t.Fatal(err)
			}
			if err := l.janitor.maintain(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if u := l.Usage(); u.Segments > 8 {
		t.Errorf("%d segments hold 60 entries: %+v", u.Segments, u)
	}
	wantEntries(t, g, 1942, 2000, 1, 200)
	wantEntries(t, mustOpen(t, memConfig(fs.CrashClone(nil))).Group(1), 1942, 2000, 1, 200)
}

func TestIdleGroupsDoNotPinTheLog(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, memConfig(fs))
	busy := l.Group(1000)
	busy.SetFloor(math.MaxUint64)
	var idle []*Group
	for i := uint64(1); i < 6000; i += 20 {
		mustStore(t, busy, entries(1000, i, i+19, 1, 200))
		if i%100 != 1 || i < 60 {
			continue
		}
		g := l.Group(uint32(len(idle))) // a few entries in every segment or so
		mustStore(t, g, entries(g.id, 1, 5, 1, 100))
		idle = append(idle, g)
		if err := busy.DeleteRange(1, i-40); err != nil {
			t.Fatal(err)
		}
		if err := l.janitor.maintain(); err != nil {
			t.Fatal(err)
		}
	}
	if u := l.Usage(); u.Segments > int(u.LiveBytes/(8<<10))+deadSegmentsMax+4 {
		t.Errorf("%d idle groups pin the log: %+v", len(idle), u)
	}
	moved := 0
	for _, g := range idle {
		wantEntries(t, g, 1, 5, 1, 100)
		if g.index.get(1).size >= recordHeaderMin+originBytes+100 {
			moved++
		}
	}
	if moved == 0 {
		t.Error("nothing was relocated")
	}
	l = mustOpen(t, memConfig(fs.CrashClone(nil)))
	for id := range idle {
		wantEntries(t, l.Group(uint32(id)), 1, 5, 1, 100)
	}
	if last, _ := l.Group(1000).LastIndex(); last != 6000 {
		t.Errorf("busy group ends at %d, want 6000", last)
	}
}

// TestPressedLogFreesWhatLittleIsDead: few entries that are needed lie scattered
// over a small log, whose other segments are empty; nothing is written meanwhile.
func TestPressedLogFreesWhatLittleIsDead(t *testing.T) {
	l := mustOpen(t, memConfig(vfs.NewMem()))
	busy := l.Group(1000)
	busy.SetFloor(math.MaxUint64)
	for i := uint64(1); i < 80; i += 20 { // a few segments, each with an entry of another group
		mustStore(t, busy, entries(1000, i, i+19, 1, 400))
		mustStore(t, l.Group(uint32(i)), entries(uint32(i), 1, 1, 1, 100))
	}
	if err := busy.DeleteRange(1, 79); err != nil {
		t.Fatal(err)
	}
	if err := l.janitor.maintain(); err != nil {
		t.Fatal(err)
	}
	before := l.Usage()
	if before.Segments < 4 {
		t.Fatalf("the log is too small to show anything: %+v", before)
	}
	end := time.Now().Add(20 * time.Second)
	for u := before; u.Segments > 2; u = l.Usage() {
		l.Press(true)
		if time.Now().After(end) {
			t.Fatalf("%d segments hold %d bytes that are needed: %+v", u.Segments, u.LiveBytes, u)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if u := l.Usage(); u.InUse != int64(u.Segments)*l.cfg.SegmentBytes || u.InUse >= u.Bytes {
		t.Errorf("empty files count as used: %+v", u)
	}
	for i := uint64(1); i < 80; i += 20 {
		wantEntries(t, l.Group(uint32(i)), 1, 1, 1, 100)
	}
}

func TestManyGroupsShareCommits(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, memConfig(fs))
	const groups, each = 16, 50
	var wg sync.WaitGroup
	for id := uint32(0); id < groups; id++ {
		wg.Go(func() {
			g := l.Group(id)
			for i := uint64(1); i <= each; i++ {
				if err := g.StoreLogs(entries(id, i, i, 1, 64)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	l = mustOpen(t, memConfig(fs.CrashClone(nil)))
	for id := uint32(0); id < groups; id++ {
		wantEntries(t, l.Group(id), 1, each, 1, 64)
	}
}

func TestSecondProcessAndForeignNodeAreRefused(t *testing.T) {
	fs := vfs.NewMem()
	cfg := memConfig(fs)
	cfg.Node, cfg.Cluster = "n0.5f3a9c1e", "c1"
	l := mustOpen(t, cfg)
	if _, err := Open(quiet, nil, cfg); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("second open: %v, want ErrLocked", err)
	}
	mustClose(t, l)
	for _, change := range []func(*Config){func(c *Config) { c.Node = "n1.00000001" }, func(c *Config) { c.Cluster = "c2" }} {
		other := cfg
		change(&other)
		if _, err := Open(quiet, nil, other); !errors.Is(err, ErrForeign) {
			t.Errorf("open as %s of %s: %v, want ErrForeign", other.Node, other.Cluster, err)
		}
	}
	mustClose(t, mustOpen(t, cfg))
}
