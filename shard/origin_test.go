package shard

import (
	"reflect"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
)

func TestBlocksOfAnOriginApplyInSequenceAndOnce(t *testing.T) {
	r := newRig(t)
	m := func(i int64) telemetry.Message { return message("d1", epoch2026+i, float64(i)) }
	const o = "n1.000000aa"
	if got := r.blockAs(o, 5, 2, m(2)); got.Status != StatusGap || got.Next != 1 {
		t.Fatalf("second block first: %+v, want a gap from 1", got)
	}
	first := r.blockAs(o, 5, 1, m(1))
	if first.Status != StatusApplied || first.Index != 2 {
		t.Fatalf("first block: %+v", first)
	}
	if got := r.blockAs(o, 5, 3, m(3)); got.Status != StatusGap || got.Next != 2 {
		t.Fatalf("third block before the second: %+v, want a gap from 2", got)
	}
	if got := r.blockAs(o, 5, 1, m(1)); !reflect.DeepEqual(got, first) {
		t.Fatalf("first block again: %+v, want its first answer %+v", got, first)
	}
	if r.counts.Applied != 1 {
		t.Fatalf("%d messages applied, want 1", r.counts.Applied)
	}
}

func TestNewEpochBeginsAtOneAndEndsTheOldOne(t *testing.T) {
	r := newRig(t)
	const o = "n1.000000aa"
	r.blockAs(o, 5, 1, message("d1", epoch2026, 1))
	if got := r.blockAs(o, 6, 2, message("d1", epoch2026+1, 1)); got.Status != StatusGap || got.Next != 1 {
		t.Fatalf("new epoch from 2: %+v, want a gap from 1", got)
	}
	if got := r.blockAs(o, 5, 2, message("d1", epoch2026+1, 1)); got.Status != StatusApplied {
		t.Fatalf("a gap of a new epoch must not end the old one: %+v", got)
	}
	if got := r.blockAs(o, 6, 1, message("d1", epoch2026+2, 1)); got.Status != StatusApplied {
		t.Fatalf("new epoch from 1: %+v", got)
	}
	if got := r.blockAs(o, 5, 3, message("d1", epoch2026+3, 1)); got.Status != StatusUnknown {
		t.Fatalf("old epoch: %+v, want unknown", got)
	}
}

func TestAnswerThatIsNotRememberedIsUnknown(t *testing.T) {
	r := newRig(t)
	const o = "n1.000000aa"
	for seq := uint64(1); seq <= originResultsMax+1; seq++ {
		r.blockAs(o, 1, seq, message("d1", epoch2026+int64(seq), 1))
	}
	if got := r.blockAs(o, 1, 2, message("d1", epoch2026+2, 1)); got.Status != StatusApplied || got.Index != 2 {
		t.Fatalf("oldest remembered: %+v, want applied at 2", got)
	}
	if got := r.blockAs(o, 1, 1, message("d1", epoch2026+1, 1)); got.Status != StatusUnknown {
		t.Fatalf("older than remembered: %+v, want unknown", got)
	}
	if got := r.blockAs(o, 1, 0, message("d1", epoch2026, 1)); got.Status != StatusUnknown {
		t.Fatalf("sequence 0: %+v, want unknown", got)
	}
}

func TestLeastRecentlyActiveOriginIsForgotten(t *testing.T) {
	o := origins{}
	name := func(i int) string { return string([]byte{'n', byte(i), byte(i >> 8)}) }
	for i := range originsMax {
		o.record(name(i), 1, 1, Result{Status: StatusApplied, Index: uint64(i + 1)})
	}
	o.record(name(0), 1, 2, Result{Status: StatusApplied, Index: originsMax + 1})
	o.record("new", 1, 1, Result{Status: StatusApplied, Index: originsMax + 2})
	if len(o) != originsMax || o[name(1)] != nil || o[name(0)] == nil {
		t.Fatalf("%d origins, second-oldest kept %v, recently used kept %v", len(o), o[name(1)] != nil, o[name(0)] != nil)
	}
}
