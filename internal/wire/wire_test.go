package wire

import (
	"errors"
	"math"
	"testing"
)

func TestFieldsReadBackAsWritten(t *testing.T) {
	var b []byte
	b = AppendUint(b, math.MaxUint64)
	b = AppendInt(b, math.MinInt64)
	b = AppendFloat(b, math.Copysign(0, -1))
	b = AppendString(b, "zone-a")
	b = AppendString(b, []byte{0, 1})
	b = AppendBool(b, true)
	r := NewReader(b)
	if v := r.Uint(); v != math.MaxUint64 {
		t.Errorf("Uint() = %d", v)
	}
	if v := r.Int(); v != math.MinInt64 {
		t.Errorf("Int() = %d", v)
	}
	if v := r.Float(); v != 0 || !math.Signbit(v) {
		t.Errorf("Float() = %v, want -0", v)
	}
	if v := r.String(); v != "zone-a" {
		t.Errorf("String() = %q", v)
	}
	if v := r.Blob(); len(v) != 2 || v[1] != 1 {
		t.Errorf("Blob() = %v", v)
	}
	if !r.Bool() || r.Len() != 0 || r.Err() != nil {
		t.Errorf("Bool, Len, Err at the end: %d bytes left, err %v", r.Len(), r.Err())
	}
}

func FuzzReaderStopsAtHostileLengths(f *testing.F) {
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f, 1, 2})
	f.Add(AppendString(nil, "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(b)
		n := r.Count(2)
		if n > len(b) {
			t.Fatalf("Count(2) = %d of %d bytes", n, len(b))
		}
		_, _, _, _ = r.Blob(), r.Int(), r.Float(), r.Byte()
		if r.Bytes(-1) != nil || !errors.Is(r.Err(), ErrShort) {
			t.Fatalf("Bytes(-1) must fail, err %v", r.Err())
		}
	})
}
