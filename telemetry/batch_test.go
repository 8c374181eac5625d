package telemetry

import (
	"testing"

	"pgregory.net/rapid"
)

// TestUnionOfWatermarks is that of the sets of entries that they stand for.
func TestUnionOfWatermarks(t *testing.T) {
	const most = 12
	rapid.Check(t, func(rt *rapid.T) {
		n := func(from, to uint64) uint64 { return rapid.Uint64Range(from, to).Draw(rt, "n") }
		draw := func() (w Watermarks) {
			w.To[LaneLate], w.To[LaneLive] = n(0, most), n(0, most)
			if from := n(0, most); n(0, 2) > 0 && from+1 < w.To[LaneLive] {
				w.Gap = Gap{from, n(from+1, w.To[LaneLive]-1)}
			}
			return w
		}
		a, b := draw(), draw()
		got, ok := a.Union(b)
		gaps, was := 0, true
		for i := uint64(1); i <= most; i++ {
			live := a.Has(LaneLive, i) || b.Has(LaneLive, i)
			if live && !was {
				gaps++
			}
			was = live
			if ok && (got.Has(LaneLive, i) != live || got.Has(LaneLate, i) != (a.Has(LaneLate, i) || b.Has(LaneLate, i))) {
				rt.Fatalf("%+v and %+v give %+v, wrong at %d", a, b, got, i)
			}
		}
		if ok != (gaps <= 1) {
			rt.Fatalf("%+v and %+v have %d gaps: %t", a, b, gaps, ok)
		}
		if other, also := b.Union(a); also != ok || ok && other != got {
			rt.Fatalf("%+v and %+v give %+v, or %+v the other way round", a, b, got, other)
		}
	})
}
