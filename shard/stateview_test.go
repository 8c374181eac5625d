package shard

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// TestSnapshotStaysAsItWasTakenWhileTheShardGoesOn takes snapshots at random
// places, goes on, and writes them later: each must be what it would have been
// at once.
func TestSnapshotStaysAsItWasTakenWhileTheShardGoesOn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type taken struct {
			snap *snapshot
			want []byte
		}
		r := newRig(t)
		at := epoch2026
		var open []taken
		settle := func() {
			for _, s := range open {
				var b bytes.Buffer
				if err := s.snap.write(&b); err != nil {
					t.Fatalf("write snapshot: %v", err)
				}
				s.snap.Release()
				if !bytes.Equal(b.Bytes(), s.want) {
					t.Fatalf("a snapshot of %d bytes changed while the shard went on", len(s.want))
				}
			}
			open = nil
		}
		for n := range rapid.IntRange(1, 60).Draw(t, "entries") {
			switch rapid.IntRange(0, 9).Draw(t, "entry") {
			case 0:
				want := r.snapshotBytes()
				s, err := (&fsm{machine: r.machine}).Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, taken{s.(*snapshot), want})
			case 1:
				settle()
			case 2:
				r.put(putOf(byte(n), rapid.SampledFrom([]string{"a", "b", "new"}).Draw(t, "device"), fmt.Sprint(n)))
			case 3:
				r.entry(flushEntry{From: r.pending.watermarks.To[0], To: r.pending.last()}.encode())
			case 4:
				r.entry(quarantineRemoveEntry([]uint64{rapid.Uint64Range(0, 9).Draw(t, "id")}))
			default:
				r.block(storm(t, &at)...)
			}
		}
		settle()
		if g := r.registry; g.devices.views != 0 || g.series.views != 0 || g.states.views != 0 {
			t.Fatalf("views are left: %d, %d, %d", g.devices.views, g.series.views, g.states.views)
		}
	})
}

// TestSnapshotIsWrittenBesideApply goes on while snapshots are written: windows
// that move, chunks that fill, new devices, and a restore under way.
func TestSnapshotIsWrittenBesideApply(t *testing.T) {
	r := newRig(t)
	f := &fsm{machine: r.machine, applied: func([]Event, session.Effects) {}, restored: func(uint64) {}}
	f.started.Store(true) // a restore is a leader's
	var messages []telemetry.Message
	for i := range 40_000 {
		m := section3(i%100+i/400, i)
		m.Attributes[1].Value = fmt.Sprint(i % 7)
		messages = append(messages, m)
	}
	var writing sync.WaitGroup
	for seq := 1; len(messages) > 0; seq++ {
		n := min(len(messages), 100)
		data := encode(t, block.Header{Origin: "n0.00000001", Epoch: 1, Seq: uint64(seq), Shard: 3}, messages[:n]...)
		messages = messages[n:]
		f.mu.Lock()
		r.entry(data)
		f.mu.Unlock()
		if seq%10 == 0 {
			want := snapshotOf(t, f)
			s, err := f.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			writing.Go(func() {
				var b bytes.Buffer
				if err := s.(*snapshot).write(&b); err != nil || !bytes.Equal(b.Bytes(), want) {
					t.Errorf("snapshot %d: %v, %d bytes are not the %d that it had at once", seq, err, b.Len(), len(want))
				}
				s.Release()
			})
		}
		if seq == 200 {
			f.mu.Lock()
			_, _ = f.pending.flushed(telemetry.LaneLive, r.pending.last(), telemetry.Gap{})
			f.mu.Unlock()
			if err := f.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, f)))); err != nil {
				t.Fatal(err)
			}
		}
	}
	writing.Wait()
	if f.registry.devices.views != 0 {
		t.Fatalf("%d views are left", f.registry.devices.views)
	}
	restoreMachine(t, snapshotOf(t, f))
}
