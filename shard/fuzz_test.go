package shard

import (
	"bytes"
	"context"
	"reflect"
	"slices"
	"testing"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

func FuzzDecodeQueryGivesAUsableQuery(f *testing.F) {
	q := queryAll("d1")
	f.Add(encodeQuery(&q))
	q.After = &store.Point{Time: 5, Sensor: "temperature", Value: 1}
	f.Add(encodeQuery(&q))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := decodeQuery(b)
		if err != nil {
			return
		}
		if q.Limit <= 0 {
			t.Fatalf("limit %d", q.Limit)
		}
		again, err := decodeQuery(encodeQuery(&q))
		if err != nil || !samePoints(again.After, q.After) {
			t.Fatalf("encoded again: %+v, err %v, want %+v", again, err, q)
		}
		again.After, q.After = nil, nil
		if again != q {
			t.Fatalf("encoded again: %+v, want %+v", again, q)
		}
	})
}

// samePoints compares bit for bit, so that NaN equals itself.
func samePoints(a, b *store.Point) bool {
	if a == nil || b == nil {
		return a == b
	}
	return bytes.Equal(appendPoints(nil, []store.Point{*a}), appendPoints(nil, []store.Point{*b}))
}

func FuzzDecodePointsStopsAtHostileBytes(f *testing.F) {
	f.Add(appendPoints(nil, []store.Point{{Time: 1, Received: 2, Sensor: "t", Value: 3, Score: 0.5, Quality: 1}, {Sensor: "t"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := wire.NewReader(b)
		if points := decodePoints(r); len(points) > len(b) {
			t.Fatalf("%d points of %d bytes", len(points), len(b))
		}
	})
}

func FuzzDecodeResultStopsAtHostileBytes(f *testing.F) {
	f.Add((&Result{Status: StatusApplied, Index: 9, Outcomes: []telemetry.Outcome{1, 2, 3}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := wire.NewReader(b)
		res := DecodeResult(r)
		if r.Err() != nil {
			return
		}
		again := wire.NewReader(res.Append(nil))
		if got := DecodeResult(again); !reflect.DeepEqual(got, res) {
			t.Fatalf("encoded again: %+v, want %+v", got, res)
		}
	})
}

func seedMachine(tb tester) *rig {
	r := newRig(tb)
	m := message("d1", epoch2026, 1, 2)
	m.Attributes = []telemetry.Attribute{{Key: "fw", Value: "1"}}
	r.block(m, telemetry.Message{Device: "d1", Received: epoch2026, Reason: "bad", Topic: "t", Payload: []byte("x"), Dup: telemetry.DupKey{3}})
	r.entry(flushEntry{From: 0, To: 1}.encode())
	r.block(message("d2", epoch2026, 1, 2))
	return r
}

// FuzzRestoredMachineWorks changes a snapshot's sections anywhere (a disk's checksum would
// notice; a peer's mistake would not): restore refuses it or gives a machine
// that applies, answers and takes snapshots without falling over.
func FuzzRestoredMachineWorks(f *testing.F) {
	snap := unpacked(f, seedMachine(f).snapshotBytes())
	for _, at := range []int{20, 40, 90, 150, 400, len(snap) - 30} {
		f.Add(at, byte(0x41), 0)
	}
	f.Add(60, byte(0xff), 5)
	next := encode(f, block.Header{Origin: "n9.00000001", Epoch: 1, Seq: 1, Shard: 3}, message("d1", epoch2026+1, 5, 6), message("d9", epoch2026, 1))
	f.Fuzz(func(t *testing.T, at int, change byte, cut int) {
		b := bytes.Clone(snap)
		if at < 0 || at >= len(b) || cut < 0 || cut > len(b) {
			return
		}
		b[at] ^= change
		b = b[:len(b)-cut]
		m := newMachine(3, testDetector())
		if m.restoreSections(bytes.NewReader(b), notInLog, func() {}) != nil {
			return
		}
		m.apply(m.index+1, m.term, next)
		m.apply(m.index+1, m.term, flushEntry{From: m.pending.watermarks.To[0], To: m.index}.encode())
		for i := range m.registry.devices.n {
			m.describe(i, true)
		}
		fl := &flusher{shard: &Shard{fsm: &fsm{machine: m}}}
		_, _ = fl.pendingPoints(slices.Values(m.pending.blocks), telemetry.Watermarks{}, queryAll("d1")) // an error is fine, a panic is not
		_, _ = fl.batch(0, m.index, m.pending.blocks, bothLanes)
		_ = m.digest()
	})
}

// FuzzApplyNeverFallsOver gives any bytes to the state machine as an entry.
func FuzzApplyNeverFallsOver(f *testing.F) {
	f.Add(timeEntry(5, 0))
	f.Add(flushEntry{From: 0, To: 1}.encode())
	f.Add(flushedEntry(telemetry.LaneLive, 1, telemetry.Gap{}))
	f.Add(flushedEntry(telemetry.LaneLate, 1, telemetry.Gap{}))
	f.Add(flushedEntry(telemetry.LaneLive, 3, telemetry.Gap{From: 1, To: 2}))
	f.Add(quarantineRemoveEntry([]uint64{1, 2}))
	f.Add(encode(f, block.Header{Origin: "n0.00000001", Epoch: 1, Seq: 2, Shard: 3}, message("d1", epoch2026, 1, 2)))
	f.Fuzz(func(t *testing.T, entry []byte) {
		a, b := seedMachine(t), seedMachine(t)
		a.entry(entry)
		b.entry(entry)
		if a.digest() != b.digest() {
			t.Fatal("two machines disagree about an entry")
		}
		restoreMachine(t, a.snapshotBytes())
	})
}

// FuzzAnswerNeverFallsOver asks a node anything.
func FuzzAnswerNeverFallsOver(f *testing.F) {
	q := queryAll("d1")
	f.Add(append([]byte{askReadings}, encodeQuery(&q)...))
	for _, ask := range []byte{askDevice, askDevices, askAnomalies, askQuarantine, askRemove, askStatus, askCounts, askLeaders, askDigests, '?'} {
		f.Add([]byte{ask, '{', '}'})
	}
	f.Fuzz(func(t *testing.T, question []byte) {
		h := &Host{cfg: HostConfig{Self: "n0.00000001"}, shards: map[telemetry.ShardID]*hosted{}}
		answer := h.Answer(context.Background(), 4, question)
		if len(answer) == 0 {
			t.Fatal("no answer")
		}
		_, _ = readAnswer(3, answer)
	})
}
