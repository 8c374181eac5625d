package shard

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/telemetry"
)

func putOf(n byte, device string, values ...string) *Put {
	p := &Put{ID: [16]byte{n, 1}, Received: epoch2026, Device: device}
	for i, v := range values {
		p.Attributes = append(p.Attributes, telemetry.Attribute{Key: fmt.Sprintf("k%d", i), Value: v})
	}
	return p
}

func (r *rig) put(p *Put) PutResult {
	r.tb.Helper()
	res, ok := r.entry(p.encode()).(PutResult)
	if !ok {
		r.tb.Fatalf("a put was not answered with a PutResult")
	}
	return res
}

func (r *rig) revision(device string) uint64 {
	return r.registry.devices.at(r.registry.byID[device]).revision
}

func TestPutHappensOnlyUnderItsPreconditions(t *testing.T) {
	r := newRig(t)
	match := func(revisions ...uint64) Tags { return Tags{Given: true, Revisions: revisions} }
	anything := Tags{Given: true, Any: true}
	for i, c := range []struct {
		what        string
		match, none Tags
		status      PutStatus
		revision    uint64
	}{
		{"if-match of an unknown device", match(0), Tags{}, PutMismatch, 0},
		{"if-match * of an unknown device", anything, Tags{}, PutMismatch, 0},
		{"if-none-match *", Tags{}, anything, PutCreated, 3},
		{"if-none-match * again", Tags{}, anything, PutMismatch, 3},
		{"if-match of an old revision", match(2), Tags{}, PutMismatch, 3},
		{"if-match of one of two", match(1, 3), Tags{}, PutStored, 6},
		{"both hold", match(6), match(3), PutStored, 7},
		{"if-none-match of the present one", Tags{}, match(7), PutMismatch, 7},
		{"if-match *", anything, Tags{}, PutStored, 9},
		{"no precondition", Tags{}, Tags{}, PutStored, 10},
		{"a precondition without tags", match(), Tags{}, PutMismatch, 10},
	} {
		p := putOf(byte(i), "d1", c.what)
		p.Match, p.NoneMatch = c.match, c.none
		if res := r.put(p); res != (PutResult{c.status, c.revision}) {
			t.Errorf("%s: got %+v, want %+v", c.what, res, PutResult{c.status, c.revision})
		}
	}
	if d := r.describe(0, true); len(d.Attributes) != 1 || d.Attributes[0].Value != "no precondition" || d.FirstSeen != epoch2026 {
		t.Fatalf("device %+v, want the attributes of the last put that succeeded", d)
	}
}

func TestPutProposedAgainHasOneEffectAndItsFirstAnswer(t *testing.T) {
	r := newRig(t)
	first := r.put(putOf(1, "d1", "a"))
	cas := putOf(2, "d1", "b")
	cas.Match = Tags{Given: true, Revisions: []uint64{first.Revision}}
	want := r.put(cas)
	if want.Status != PutStored {
		t.Fatalf("compare-and-set: %+v", want)
	}
	last := r.put(putOf(3, "d1", "c"))
	r.machine = restoreMachine(t, r.snapshotBytes())
	if got := r.put(cas); got != want {
		t.Fatalf("proposed again: %+v, want its first answer %+v and not a mismatch", got, want)
	}
	if got := r.put(putOf(1, "d1", "a")); got != first || r.revision("d1") != last.Revision {
		t.Fatalf("an unconditional put proposed again: %+v and revision %d, want %+v and %d", got, r.revision("d1"), first, last.Revision)
	}
}

func TestForgottenPutIsUnknownAndNeverAppliedTwice(t *testing.T) {
	r := newRig(t)
	early := putOf(1, "d1", "early")
	early.Base = r.next
	r.put(early)
	for i := range putsMax {
		p := putOf(2, "d1", "x")
		p.ID[2], p.ID[3] = byte(i), byte(i>>8)
		p.Base = r.next
		if res := r.put(p); res.Status != PutStored {
			t.Fatalf("put %d: %+v", i, res)
		}
	}
	before := r.revision("d1")
	for range 2 {
		if res := r.put(early); res.Status != PutUnknown || r.revision("d1") != before {
			t.Fatalf("a forgotten put: %+v, revision %d, want unknown and %d", res, r.revision("d1"), before)
		}
		r.machine = restoreMachine(t, r.snapshotBytes())
	}
	late := putOf(4, "d1", "late")
	late.Base = r.next
	if res := r.put(late); res.Status != PutStored {
		t.Fatalf("a new put behind it: %+v", res)
	}
}

func TestRevisionMovesWithEveryChangeByTelemetryAndOnlyThen(t *testing.T) {
	r := newRig(t)
	r.put(putOf(1, "d1", "a", "b"))
	with := func(at int64, value string) telemetry.Message {
		m := message("d1", epoch2026+at, float64(at))
		m.Attributes = []telemetry.Attribute{{Key: "k0", Value: value}}
		return m
	}
	for i, c := range []struct {
		value string
		moves bool
	}{{"a", false}, {"c", true}, {"c", false}, {"a", true}} {
		before := r.revision("d1")
		r.block(with(int64(i), c.value))
		if after := r.revision("d1"); (after != before) != c.moves || c.moves && after != r.next {
			t.Errorf("metadata %q: revision %d after %d at entry %d, want a move: %v", c.value, after, before, r.next, c.moves)
		}
	}
	res := r.put(putOf(2, "d1", "z"))
	if a := r.registry.attributes(r.registry.devices.at(0)); len(a) != 1 || a[0].Value != "z" || res.Revision != r.next {
		t.Fatalf("attributes %v, result %+v: a put replaces all", a, res)
	}
}

func TestPutIsFlushedWithItsDeviceThoughNoMessageCame(t *testing.T) {
	r := newRig(t)
	r.put(putOf(1, "d1", "a"))
	if err := r.entry(flushEntry{From: 0, To: r.pending.last()}.encode()); err != nil || r.pending.watermarks.To[0] != 1 {
		t.Fatalf("flush: %v, watermark %d", err, r.pending.watermarks.To[0])
	}
	u := r.pending.decided[0].updates
	if len(u) != 1 || u[0].Device != "d1" || !slices.Equal(u[0].Attributes, []telemetry.Attribute{{Key: "k0", Value: "a"}}) {
		t.Fatalf("updates %+v, want d1 with its attribute", u)
	}
}

func TestPutThatCannotBeReadChangesNothing(t *testing.T) {
	r := newRig(t)
	good := putOf(1, "d1", "a").encode()
	for n := range good {
		if err, ok := r.entry(good[:n]).(error); n >= 2 && (!ok || err == nil) {
			t.Errorf("%d of %d bytes were answered with %v, want an error", n, len(good), err)
		}
	}
	bad := putOf(2, "d1", "a")
	bad.Attributes[0].Key = "\x00"
	for _, data := range [][]byte{bad.encode(), putOf(3, "no device id", "a").encode()} {
		if err, _ := r.entry(data).(error); err == nil {
			t.Error("attributes outside the bounds were taken")
		}
	}
	if r.registry.devices.n != 0 {
		t.Fatal("a device was made")
	}
}

func TestPutReadsBackAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tags := rapid.Custom(func(t *rapid.T) Tags {
			return Tags{rapid.Bool().Draw(t, "given"), rapid.Bool().Draw(t, "any"), rapid.SliceOfN(rapid.Uint64(), 0, tagsMax).Draw(t, "revisions")}
		})
		p := &Put{Base: rapid.Uint64().Draw(t, "base"), Received: rapid.Int64().Draw(t, "received"), Device: "d1", Match: tags.Draw(t, "match"), NoneMatch: tags.Draw(t, "none")}
		for k, v := range rapid.MapOfN(rapid.StringMatching(`[a-z]{1,9}`), rapid.StringMatching(`[ -~]{0,9}`), 0, 9).Draw(t, "attributes") {
			p.Attributes = append(p.Attributes, telemetry.Attribute{Key: k, Value: v})
		}
		if err := p.check(); err != nil {
			t.Fatal(err)
		}
		r, err := controlBody(p.encode())
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodePut(r)
		if err != nil || !bytes.Equal(got.encode(), p.encode()) {
			t.Fatalf("read back %+v, %v, want %+v", got, err, p)
		}
	})
}
