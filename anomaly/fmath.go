package anomaly

import "math"

// The arithmetic of this package is the same to the last bit on every CPU: the
// compiler may fuse x*y+z into one rounding only where no conversion stands
// between (Go specification, "Floating-point operators"), so products that meet
// a sum go through mul; math.Exp and math.Log choose their code by CPU, so exp
// and ln are our own. math.Sqrt, Abs, Float64bits and division are exact by
// IEEE 754 and may be used.

// mul is x*y rounded, never fused with what follows.
func mul(x, y float64) float64 { return float64(x * y) }

// toward moves m by the fraction a of its distance to x (an exponentially
// weighted mean).
func toward(m, x, a float64) float64 { return m + mul(a, x-m) }

// larger and smaller are math.Max and Min for numbers (never NaN), inlined.
func larger(x, y float64) float64 {
	if x > y {
		return x
	}
	return y
}

func smaller(x, y float64) float64 {
	if x < y {
		return x
	}
	return y
}

func clip(x, limit float64) float64 {
	if x > limit {
		return limit
	}
	if x < -limit {
		return -limit
	}
	return x
}

const (
	ln2Hi = 6.93147180369123816490e-01 // ln 2 split so that k*ln2Hi is exact (fdlibm)
	ln2Lo = 1.90821492927058770002e-10
)

// ln is the natural logarithm, |relative error| < 1e-14 for normal x > 0; it
// gives -745 (the logarithm of the smallest float64) for anything else.
// x = 2^k m with m in [sqrt(1/2), sqrt 2), ln m = 2 atanh((m-1)/(m+1)).
func ln(x float64) float64 {
	if !(x >= 2.2250738585072014e-308) || x > math.MaxFloat64 {
		return -745
	}
	b := math.Float64bits(x)
	k := int(b>>52) - 1023
	m := math.Float64frombits(b&(1<<52-1) | 1023<<52)
	if m > math.Sqrt2 {
		m *= 0.5
		k++
	}
	f := (m - 1) / (m + 1)
	g := mul(f, f)
	// the series by pairs (Estrin): half of the steps wait for one another
	g2 := mul(g, g)
	g4 := mul(g2, g2)
	a := (1.0/3 + mul(g, 1.0/5)) + mul(g2, 1.0/7+mul(g, 1.0/9))
	z := (1.0/11 + mul(g, 1.0/13)) + mul(g2, 1.0/15+mul(g, 1.0/17))
	p := a + mul(g4, z+mul(g4, 1.0/19))
	r := mul(2*f, 1+mul(g, p))
	return mul(float64(k), ln2Hi) + (r + mul(float64(k), ln2Lo))
}

// lnCount is ln of a whole number, the small ones by table.
func lnCount(n int) float64 {
	if n < len(lnSmall) {
		return lnSmall[n]
	}
	return ln(float64(n))
}

var lnSmall = func() (t [65]float64) {
	for n := range t {
		t[n] = ln(float64(n))
	}
	return t
}()

// exp is e^x, |relative error| < 1e-14 for x in [-700, 700]; below it gives 0,
// above e^700. x = k ln 2 + r with |r| <= ln(2)/2, e^r by its Taylor series.
func exp(x float64) float64 {
	if !(x > -700) {
		return 0
	}
	if x > 700 {
		x = 700
	}
	k := int(mul(x, 1/math.Ln2)+1024.5) - 1024 // floor(x/ln2 + 1/2) for |x| <= 700
	r := (x - mul(float64(k), ln2Hi)) - mul(float64(k), ln2Lo)
	r2 := mul(r, r)
	r4 := mul(r2, r2)
	a := (1 + r) + mul(r2, 1.0/2+mul(r, 1.0/6))
	b := (1.0/24 + mul(r, 1.0/120)) + mul(r2, 1.0/720+mul(r, 1.0/5040))
	c := (1.0/40320 + mul(r, 1.0/362880)) + mul(r2, 1.0/3628800+mul(r, 1.0/39916800))
	c += mul(r4, 1.0/479001600+mul(r, 1.0/6227020800))
	p := (a + mul(r4, b)) + mul(mul(r4, r4), c)
	return mul(p, math.Float64frombits(uint64(k+1023)<<52))
}
