package wal

import (
	"encoding/binary"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// TestWaitingGroupsShareOneSyncWithVotes holds the disk in a sync while entries of
// many groups, a term and a vote come in: all of them are one commit and one sync.
func TestWaitingGroupsShareOneSyncWithVotes(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, memConfig(fs))
	waitFor(t, func() bool { n, _ := l.prep.stock(); return n == 1+reserveSegments }) // its syncs do not count
	held, release := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	syncs := 0
	fs.SetHook(func(op vfs.Op) error {
		if op.Kind != vfs.OpSync || !strings.Contains(op.Name, ".wal") {
			return nil
		}
		mu.Lock()
		syncs++
		first := syncs == 1
		mu.Unlock()
		if first {
			close(held)
			<-release
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() { mustStore(t, l.Group(0), entries(0, 1, 1, 1, 64)) })
	<-held
	const groups = 12
	for id := uint32(1); id <= groups; id++ {
		wg.Go(func() { mustStore(t, l.Group(id), entries(id, 1, 3, 1, 64)) })
	}
	for key, value := range map[string]uint64{"CurrentTerm": 7, "LastVoteTerm": 7} {
		wg.Go(func() {
			if err := l.Group(99).SetUint64([]byte(key), value); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, func() bool {
		l.qmu.Lock()
		defer l.qmu.Unlock()
		return len(l.queue) >= groups+2
	})
	close(release)
	wg.Wait()
	seen := map[uint64]int{} // records by group commit
	_, err := l.w.head.scan(func(_ int64, _ []byte, r *record) error {
		if r.group != 0 && (r.typ == typeEntry || r.typ == typeStable) {
			seen[r.commit]++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for commit, n := range seen {
		if len(seen) != 1 || n != 3*groups+2 {
			t.Errorf("group commit %d has %d records of %d commits, want all %d in one", commit, n, len(seen), 3*groups+2)
		}
	}
}

// TestOneGroupAloneNeverLingers: waiting for others costs a group that writes
// alone nothing, and two that take turns soon nothing either.
func TestOneGroupAloneNeverLingers(t *testing.T) {
	store := func(groups ...uint32) *Log {
		fs := vfs.NewMem()
		l := mustOpen(t, memConfig(fs))
		next := map[uint32]uint64{}
		for _, id := range groups {
			next[id]++
			mustStore(t, l.Group(id), entries(id, next[id], next[id], 1, 64))
		}
		mustClose(t, l)
		return l
	}
	// Patience changes with every linger: in vain it becomes less.
	if l := store(1, 1, 1, 1, 1, 1, 1, 1); l.w.patience != DefaultLinger {
		t.Errorf("one group: patience is %v, so it has waited", l.w.patience)
	}
	if l := store(1, 2, 1, 2, 1, 2, 1, 2); l.w.patience != DefaultLinger/16 {
		t.Errorf("two groups, one after the other: patience is %v, want the least", l.w.patience)
	}
	if l := store(1, 2, 2, 2); l.w.patience >= DefaultLinger || l.w.crowd != 1 {
		t.Errorf("one group once another has stopped: patience %v, crowd %d", l.w.patience, l.w.crowd)
	}
}

// TestRecordOfAnotherSegmentOrLogNeverVerifies moves good records to where they
// do not belong, as stale bytes of a recycled file are.
func TestRecordOfAnotherSegmentOrLogNeverVerifies(t *testing.T) {
	id := [16]byte{1, 2, 3}
	raw := appendEntry(nil, newSegmentKey(id, 5), 7, 1, flagLast, 0, &raft.Log{Index: 1, Term: 1, Data: []byte("data")})
	raw = raw[:binary.LittleEndian.Uint32(raw[recordLengthStart:])]
	if _, err := decodeRecord(raw, newSegmentKey(id, 5)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []segmentKey{newSegmentKey(id, 6), newSegmentKey(id, 4), newSegmentKey([16]byte{1, 2, 4}, 5)} {
		for _, rekeyed := range []bool{false, true} {
			b := append([]byte(nil), raw...)
			if rekeyed { // the filter in front alone proves nothing
				b[0], b[1], b[2], b[3] = byte(key), byte(key>>8), byte(key>>16), byte(key>>24)
			}
			if _, err := decodeRecord(b, key); !isBadRecord(err) {
				t.Errorf("key %#x, written anew: %v: %v", key, rekeyed, err)
			}
		}
	}
}

// TestFilesAreRecycledAndNotMadeAnew counts the files that a log creates while it
// writes many times its size.
func TestFilesAreRecycledAndNotMadeAnew(t *testing.T) {
	fs := vfs.NewMem()
	var mu sync.Mutex
	created := 0
	fs.SetHook(func(op vfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind == vfs.OpCreate {
			created++
		}
		return nil
	})
	l := mustOpen(t, memConfig(fs))
	g := l.Group(1)
	g.SetFloor(math.MaxUint64)
	for i := uint64(1); i < 4000; i += 20 {
		mustStore(t, g, entries(1, i, i+19, 1, 200))
		if i > 60 {
			if err := g.DeleteRange(1, i-40); err != nil {
				t.Fatal(err)
			}
			l.janitor.mu.Lock()
			l.janitor.recycle()
			l.janitor.mu.Unlock()
		}
	}
	mustClose(t, l)
	mu.Lock()
	defer mu.Unlock()
	// Live, reserve, spare, and what the preparer makes while a recycled one is on its way.
	if segments := l.w.head.seq; created > int(segments)/2 || segments < 50 {
		t.Errorf("%d files were created for %d segments", created, segments)
	}
}
