package anomaly

import (
	"bytes"
	"errors"
	"testing"
)

func TestDecodedStateContinuesAsTheOriginal(t *testing.T) {
	d := New(DefaultParams())
	var a, b State
	i := 0
	corpus(func(at int64, x float64) {
		va, vb := d.Step(&a, at, x), d.Step(&b, at, x)
		if va != vb {
			t.Fatalf("reading %d: original %+v, decoded %+v", i, va, vb)
		}
		if i++; i%100 == 0 {
			wire := AppendState([]byte("x"), &b)
			var c State
			rest, err := DecodeState(append(wire, "tail"...)[1:], &c)
			if err != nil || string(rest) != "tail" {
				t.Fatalf("reading %d: rest %q, error %v", i, rest, err)
			}
			b = c
		}
	})
	if !bytes.Equal(AppendState(nil, &a), AppendState(nil, &b)) {
		t.Error("equal states, different bytes")
	}
}

func TestDecodeRefusesWhatAppendNeverWrote(t *testing.T) {
	var s, into State
	s.begin(0, 1)
	good := AppendState(nil, &s)
	for n := range good {
		if _, err := DecodeState(good[:n], &into); !errors.Is(err, ErrState) {
			t.Fatalf("first %d bytes: %v", n, err)
		}
	}
	bad := bytes.Clone(good)
	bad[0] = 99
	if _, err := DecodeState(bad, &into); !errors.Is(err, ErrState) {
		t.Errorf("unknown version: %v", err)
	}
	bad = bytes.Clone(good)
	bad[16], bad[15] = 0x7f, 0xf8 // cadence is not a number
	if _, err := DecodeState(bad, &into); !errors.Is(err, ErrState) {
		t.Errorf("NaN: %v", err)
	}
	if into != (State{}) {
		t.Error("a refused state was written")
	}
}

// What decodes encodes to the same bytes, and the detector survives it.
func FuzzDecodeState(f *testing.F) {
	d := New(DefaultParams())
	var s State
	f.Add(AppendState(nil, &s))
	n := 0
	corpus(func(at int64, x float64) {
		d.Step(&s, at, x)
		if n++; n%3000 == 0 {
			f.Add(AppendState(nil, &s))
		}
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s State
		rest, err := DecodeState(b, &s)
		if err != nil {
			return
		}
		if again := AppendState(nil, &s); !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Fatalf("decoded %x, encoded %x", b, again)
		}
		for i := range 50 {
			d.Step(&s, s.last+int64(i)*second, float64(i%5))
		}
	})
}

// States of the versions before are read, and the detector goes on from them
// without a new warm-up.
func TestOlderStateStartsWarm(t *testing.T) {
	d := New(DefaultParams())
	var s State
	last, n := int64(0), 0
	corpus(func(at int64, x float64) {
		if n++; n < 9000 {
			last = max(last, at)
			d.Step(&s, at, x)
		}
	})
	one := encoder{dst: []byte{stateFirst}}
	walk(&one, &s)
	two := encoder{dst: []byte{2}}
	walk(&two, &s)
	walkSecond(&two, &s)
	three := encoder{dst: []byte{3}}
	walk(&three, &s)
	walkSecond(&three, &s)
	walkThird(&three, &s)
	for _, old := range [][]byte{one.dst, two.dst, three.dst} {
		var back State
		rest, err := DecodeState(old, &back)
		if err != nil || len(rest) != 0 {
			t.Fatalf("version %d: rest %d bytes, error %v", old[0], len(rest), err)
		}
		v := d.Step(&back, last+300*second, back.level)
		if v.Warmup || back.Readings() != s.Readings()+1 || v.Score > 0.5 {
			t.Errorf("after a state of version %d: %+v, %d readings", old[0], v, back.Readings())
		}
	}
}
