package shard

import (
	"bytes"
	"io"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// TestRestoreOfALongBacklogParksWhatMemoryHasNoRoomFor: a snapshot that a leader
// sends after a long outage of the store holds more blocks than memory.
func TestRestoreOfALongBacklogParksWhatMemoryHasNoRoomFor(t *testing.T) {
	r := newRig(t)
	for i := range 60 {
		r.block(heavy(i, 50<<10))
		r.block(message("d1", epoch2026+int64(i)*second, float64(i), 2))
	}
	snap := snapshotOf(t, &fsm{machine: r.machine, logs: logOf(r)})
	want := r.rowsOf(t)
	f := &fsm{machine: newMachine(3, testDetector()), logs: raft.NewInmemStore(), dir: t.TempDir(), restored: func(uint64) {}}
	f.started.Store(true)
	fresh := newMachine(3, testDetector())
	fresh.parking = newParking(f.dir, 1<<20)
	if err := f.replace(fresh, bytes.NewReader(snap)); err != nil {
		t.Fatal(err)
	}
	held, parked := 0, 0
	for _, b := range f.pending.blocks {
		held += len(b.data) + 8*len(b.marks)
		if b.parked != nil {
			parked++
		}
	}
	if held > 1<<20 || parked == 0 {
		t.Fatalf("%d bytes in memory, %d blocks parked, want at most 1 MiB", held, parked)
	}
	if got := f.rowsOf(t); !slices.Equal(got, want) {
		t.Fatalf("%d rows, want the same %d", len(got), len(want))
	}
	if !bytes.Equal(snapshotOf(t, f), snapshotOf(t, &fsm{machine: r.machine, logs: logOf(r)})) {
		t.Fatal("where the blocks lie shows in the next snapshot")
	}
	// What is stored frees its file, and a second restore takes the first one's place.
	f.pending.stored(f.index)
	f.pending.trim(f.index)
	f.parking.release(f.pending.kept)
	if n := len(f.parking.files); n != 0 {
		t.Errorf("%d files are kept though everything is stored", n)
	}
	if err := f.Restore(io.NopCloser(bytes.NewReader(snap))); err != nil {
		t.Fatal(err)
	}
	if got := f.rowsOf(t); !slices.Equal(got, want) {
		t.Fatalf("%d rows after another restore, want the same %d", len(got), len(want))
	}
	f.closeParking()
}
