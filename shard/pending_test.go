package shard

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// heavy is a message whose block takes about n bytes.
func heavy(i, n int) telemetry.Message {
	m := message("d1", epoch2026+int64(i), float64(i))
	rnd, text := rand.New(rand.NewPCG(uint64(i), 1)), make([]byte, n)
	for k := range text { // text that does not compress
		text[k] = byte(' ' + rnd.IntN(90))
	}
	m.Attributes = []telemetry.Attribute{{Key: "note", Value: string(text)}}
	return m
}

// logOf is a rig's log as raft's log store.
func logOf(r *rig) *raft.InmemStore {
	s := raft.NewInmemStore()
	for i := uint64(1); i <= r.next; i++ {
		if err := s.StoreLog(&raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: r.log[i]}); err != nil {
			r.tb.Fatal(err)
		}
	}
	return s
}

func TestPendingDataBeyondItsBoundIsReadBackFromTheLog(t *testing.T) {
	r := newRig(t)
	for i := 1; r.pending.forgotten < 3; i++ {
		r.block(heavy(i, 300<<10))
	}
	if r.pending.dataBytes > pendingDataBytesMax {
		t.Fatalf("%d bytes of blocks in memory, at most %d allowed", r.pending.dataBytes, pendingDataBytesMax)
	}
	f := &fsm{machine: r.machine, logs: logOf(r)}
	for _, p := range r.pending.blocks {
		data, err := f.blockData(p)
		if err != nil || !bytes.Equal(data, r.log[p.index]) {
			t.Fatalf("block %d: %d bytes, err %v, want the entry's %d", p.index, len(data), err, len(r.log[p.index]))
		}
	}
	held := 0
	for _, p := range r.pending.blocks[4:] {
		held += len(p.data)
	}
	r.pending.stored(4)
	if r.pending.dataBytes != held || r.pending.durable != 4 || r.pending.forgotten != max(0, 3-4) {
		t.Fatalf("after release: %d bytes accounted, %d held, durable %d, forgotten %d", r.pending.dataBytes, held, r.pending.durable, r.pending.forgotten)
	}
}

func TestEntryOfAnotherTermIsNotTakenForAPendingBlock(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 1))
	r.pending.blocks[0].data = nil
	logs := raft.NewInmemStore()
	_ = logs.StoreLog(&raft.Log{Index: 1, Term: 2, Data: r.log[1]})
	if _, err := (&fsm{machine: r.machine, logs: logs}).blockData(r.pending.blocks[0]); err == nil {
		t.Fatal("a block of term 2 was returned for one of term 1")
	}
}

func TestBlockOfRepeatsTakesNoMemoryAndStillMovesTheWatermark(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 1))
	r.block(message("d1", epoch2026, 1))
	if p := r.pending.blocks[1]; p.data != nil || p.marks != nil {
		t.Fatal("a block without rows keeps its data")
	}
	if r.pending.last() != 2 {
		t.Fatalf("a flush would end at %d, want 2", r.pending.last())
	}
	restoreMachine(t, r.snapshotBytes())
}

// restored opens a snapshot as a starting (or running) replica with that log.
func restored(t *testing.T, snap []byte, logs raft.LogStore, running bool) *fsm {
	t.Helper()
	f := &fsm{machine: newMachine(3, testDetector()), logs: logs, restored: func(uint64) {}}
	f.started.Store(running)
	if err := f.Restore(io.NopCloser(bytes.NewReader(snap))); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRestartKeepsPendingBlocksInTheLogAndNotInMemory(t *testing.T) {
	r := newRig(t)
	for i := 1; r.pending.forgotten < 2; i++ {
		r.block(heavy(i, 300<<10))
	}
	logs := logOf(r)
	snap := snapshotOf(t, &fsm{machine: r.machine, logs: logs})
	own := restored(t, snap, logs, false)
	if own.pending.dataBytes > pendingDataBytesMax || own.pending.forgotten == 0 || own.pending.blocks[0].pinned {
		t.Fatalf("own snapshot: %d bytes in memory, %d blocks given to the log", own.pending.dataBytes, own.pending.forgotten)
	}
	for name, f := range map[string]*fsm{
		"empty log": restored(t, snap, raft.NewInmemStore(), false), "from a leader": restored(t, snap, logs, true),
	} {
		for _, p := range f.pending.blocks {
			if !p.pinned || p.data == nil {
				t.Fatalf("%s: block %d is left to a log that may lose it", name, p.index)
			}
		}
	}
	if want := restored(t, snap, raft.NewInmemStore(), false); !bytes.Equal(snapshotOf(t, own), snapshotOf(t, want)) {
		t.Fatal("where the blocks lie shows in the next snapshot")
	}
}

func TestOlderSnapshotDoesNotTakeTheStateBack(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 1))
	old := r.snapshotBytes()
	r.block(message("d1", epoch2026+1, 2))
	f := &fsm{machine: r.machine, logs: raft.NewInmemStore(), restored: func(uint64) {}}
	digest := r.digest()
	if err := f.Restore(io.NopCloser(bytes.NewReader(old))); err == nil || !strings.Contains(err.Error(), "applied here already") {
		t.Fatalf("restore of an older snapshot: %v", err)
	}
	if r.digest() != digest {
		t.Fatal("the refused snapshot changed the state")
	}
}

func TestDamagedSnapshotIsRefusedAndChangesNothing(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 1, 2), telemetry.Message{Device: "d1", Received: epoch2026, Reason: "bad", Payload: []byte("x")})
	r.entry(flushEntry{From: 0, To: 1}.encode())
	r.block(message("d2", epoch2026, 1, 2))
	snap := r.snapshotBytes()
	for cut := range snap {
		m := newMachine(3, testDetector())
		if err := m.restore(bytes.NewReader(snap[:cut]), notInLog, func() {}); err == nil {
			t.Fatalf("a snapshot cut at %d of %d was accepted", cut, len(snap))
		}
	}
	sections := unpacked(t, snap)
	for cut := range sections {
		m := newMachine(3, testDetector())
		if err := m.restore(bytes.NewReader(packed(t, sections[:cut])), notInLog, func() {}); err == nil {
			t.Fatalf("a snapshot whose sections are cut at %d of %d was accepted", cut, len(sections))
		}
	}
	for at := range snap {
		b := slices.Clone(snap)
		b[at] ^= 0x10
		m := newMachine(3, testDetector()) // the size of the window may change and all stay as it is
		if err := m.restore(bytes.NewReader(b), notInLog, func() {}); err == nil && !bytes.Equal(snapshotOf(t, &fsm{machine: m}), snap) {
			t.Fatalf("a snapshot with byte %d of %d changed was accepted", at, len(snap))
		}
	}
	if err := newMachine(3, testDetector()).restore(bytes.NewReader(packed(t, append(sections, 0))), notInLog, func() {}); err == nil {
		t.Fatal("a snapshot with a byte too many was accepted")
	}
	huge := packed(t, []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	if err := newMachine(3, testDetector()).restore(bytes.NewReader(huge), notInLog, func() {}); !errors.Is(err, io.EOF) {
		t.Fatalf("a section that promises 4 GiB: %v, want EOF", err)
	}
	other := newMachine(4, testDetector())
	if err := other.restore(bytes.NewReader(snap), notInLog, func() {}); err == nil || !strings.Contains(err.Error(), "shard 3") {
		t.Fatalf("another shard's snapshot: %v", err)
	}
}

func TestReadCountsEveryRowOnceWhileItMovesToTheStore(t *testing.T) {
	r := newRig(t)
	for i := range 10 {
		r.block(message("d1", epoch2026+int64(i), float64(i)))
	}
	f := &flusher{shard: &Shard{fsm: &fsm{machine: r.machine}}}
	q := queryAll("d1")
	all, err := f.pendingPoints(slices.Values(r.pending.blocks), telemetry.Watermarks{}, q)
	if err != nil || len(all) != 10 {
		t.Fatalf("%d points, err %v", len(all), err)
	}
	for split := range 11 {
		for overlap := range 3 { // the database may be ahead of the log
			fresh, err := f.pendingPoints(slices.Values(r.pending.blocks), telemetry.Watermarks{To: [telemetry.Lanes]uint64{uint64(max(0, split-overlap))}}, q)
			if err != nil {
				t.Fatal(err)
			}
			if got := mergePoints(slices.Clone(all[:split]), fresh, &store.Query{Limit: 1000}); !slices.Equal(got, all) {
				t.Fatalf("split at %d, overlap %d: %d points, want 10 in order", split, overlap, len(got))
			}
			if got := mergePoints(slices.Clone(all[:split]), fresh, &store.Query{Limit: 4}); !slices.Equal(got, all[:4]) {
				t.Fatalf("split at %d, limit 4: %d points", split, len(got))
			}
		}
	}
}
