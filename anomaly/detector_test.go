package anomaly

import (
	"encoding/binary"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// corpus is a fixed series with everything in it that the detector treats in a
// way of its own: seasons, gaps, repeats, late readings, wild values, a counter.
// It uses integer arithmetic and division only, so that it is itself the same
// everywhere.
func corpus(visit func(t int64, x float64)) {
	seed := uint64(1)
	random := func() float64 {
		seed = seed*6364136223846793005 + 1442695040888963407
		return float64(seed>>40)/(1<<24) - 0.5
	}
	t := int64(1_700_000_000) * second
	total := 0.0
	for i := range 30000 {
		t += 300 * second
		saw := float64(i % 288)
		if saw > 144 {
			saw = 288 - saw
		}
		x := saw/20 + random() + random() + random()
		switch {
		case i%2500 == 2499:
			t += 5 * day
		case i%701 == 700:
			x *= 40
		case i > 12000 && i < 12200:
			x = 3
		case i > 20000 && i < 24000:
			total += 1 + random()
			x = total
			if i == 22000 {
				total = 0
			}
		case i == 25000:
			x = 1e300
		case i == 25100:
			x = math.NaN()
		}
		if i%97 == 96 {
			visit(t-3*hour, x)
			continue
		}
		visit(t, x)
	}
}

// The digest of all verdicts and of the final state. A change of this constant
// is a change of Version: replicas that disagree on it must not share a shard.
const goldenDigest = 0x84484c264ed8cc83

func digestOf(t *testing.T) uint64 {
	t.Helper()
	d := New(DefaultParams())
	var s State
	s.SetSensors(4)
	h := fnv.New64a()
	var b []byte
	corpus(func(at int64, x float64) {
		v := d.Step(&s, at, x)
		b = binary.LittleEndian.AppendUint32(b[:0], math.Float32bits(v.Score))
		for _, f := range []float64{v.Severity, v.Expected, v.Low, v.High} {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(f))
		}
		b = append(b, byte(v.Cause), byte(v.Alert))
		h.Write(b)
	})
	h.Write(AppendState(nil, &s))
	return h.Sum64()
}

func TestVerdictsAreTheSameToTheLastBitEverywhere(t *testing.T) {
	if got := digestOf(t); got != goldenDigest {
		t.Errorf("digest %#x, want %#x: raise Version if the change is meant", got, uint64(goldenDigest))
	}
}

func TestStateIsSmall(t *testing.T) {
	if got := unsafe.Sizeof(State{}); got > 512 {
		t.Errorf("a State takes %d bytes, want at most 512", got)
	}
	if got := len(AppendState(nil, &State{})); got > 1024 {
		t.Errorf("a serialised State takes %d bytes, want at most 1024", got)
	}
}

func TestStepAllocatesNothing(t *testing.T) {
	d := New(DefaultParams())
	var s State
	i := int64(0)
	if got := testing.AllocsPerRun(5000, func() { i++; d.Step(&s, i*second, float64(i%17)) }); got != 0 {
		t.Errorf("%v allocations per step, want 0", got)
	}
}

func TestNotANumberChangesNothing(t *testing.T) {
	d := New(DefaultParams())
	var s State
	for i := range 500 {
		d.Step(&s, int64(i)*second, float64(i%7))
	}
	was := s
	for _, x := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		if v := d.Step(&s, 1000*second, x); v != (Verdict{}) || s != was {
			t.Errorf("%v: verdict %+v, state changed: %v", x, v, s != was)
		}
	}
}

func TestLateReadingIsScoredAndChangesNothing(t *testing.T) {
	d := New(DefaultParams())
	var s State
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 2000 {
		d.Step(&s, int64(i)*60*second, 20+r.NormFloat64())
	}
	was := s
	usual, wild := d.Step(&s, 1000*60*second, 20.3), d.Step(&s, 1000*60*second, 90)
	if s != was {
		t.Error("a late reading changed the state")
	}
	if usual.Score > 0.3 || wild.Score < 0.5 || wild.Alert != None || usual.Expected < 18 || usual.Expected > 22 {
		t.Errorf("usual %+v, wild %+v", usual, wild)
	}
}

// Whatever is thrown at it, the state stays finite and serialisable and the
// verdict within its ranges.
func TestExtremeSeriesNeverBreakTheState(t *testing.T) {
	values := []float64{0, 1, -1, 1e-300, -5e-324, 1e36, -1e36, math.MaxFloat64, -math.MaxFloat64, 1e17, 0.1, math.NaN(), math.Inf(1)}
	steps := []int64{0, 1, second, -second, hour, 40 * day, math.MaxInt64 / 4, math.MinInt64 / 4}
	d := New(DefaultParams())
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		var s State
		at := int64(0)
		keep := r.IntN(50) + 1
		x, dt := 0.0, int64(second)
		for i := range 3000 {
			if r.IntN(keep) == 0 {
				x = values[r.IntN(len(values))]
			}
			if r.IntN(keep) == 0 {
				dt = steps[r.IntN(len(steps))]
			}
			at += dt
			v := d.Step(&s, at, x)
			if !(v.Score >= 0 && v.Score <= 1 && v.Severity >= 0 && v.Severity <= 100) || v.Expected-v.Expected != 0 || !(v.Low <= v.High) {
				t.Fatalf("seed %d step %d value %v: %+v\nstate %+v", seed, i, x, v, s)
			}
		}
		var back State
		if rest, err := DecodeState(AppendState(nil, &s), &back); err != nil || len(rest) != 0 || back != s {
			t.Fatalf("seed %d: %v\n%+v", seed, err, s)
		}
	}
}

func BenchmarkStep(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 7))
	var xs [4096]float64
	for i := range xs {
		xs[i] = 50 + r.NormFloat64()
	}
	d := New(DefaultParams())
	var s State
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		d.Step(&s, int64(i)*10*second, xs[i&4095])
		i++
	}
}

// Surprising readings are the dear ones: logarithms and exponentials.
func BenchmarkStepWild(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 7))
	var xs [4096]float64
	for i := range xs {
		xs[i] = math.Exp(3 * r.NormFloat64())
		if i%16 == 0 {
			xs[i] *= 1e6
		}
	}
	d := New(DefaultParams())
	var s State
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		d.Step(&s, int64(i)*10*second, xs[i&4095])
		i++
	}
}

// Fifty thousand series in turn, 22 MB of states: what a shard sees, every state
// cold in the cache.
func BenchmarkStepManySeries(b *testing.B) {
	d := New(DefaultParams())
	r := rand.New(rand.NewPCG(1, 7))
	var xs [4096]float64
	var warm State
	for i := range xs {
		xs[i] = 50 + r.NormFloat64()
		d.Step(&warm, int64(i)*10*second, xs[i])
	}
	states := make([]State, 50_000)
	for i := range states {
		states[i] = warm
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		d.Step(&states[i%len(states)], int64(4096+i/len(states))*10*second, xs[i&4095])
		i++
	}
}
