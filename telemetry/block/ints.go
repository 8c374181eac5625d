package block

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
)

// An integer column stores n values as bits above a base, Lemire and Boytsov's
// patched frame of reference ("Decoding billions of integers per second through
// vectorization", 2015) without the vectors: all values, or their differences,
// get the width that most of them need, and the high bits of the few that need
// more follow as exceptions. A base above the values (downward) does the same
// for a few that are far below the rest. All arithmetic wraps, so every int64
// is representable.
const (
	flagDelta      = 1 << 0 // values are differences; the first value precedes them
	flagDownward   = 1 << 1 // packed is base - x instead of x - base
	flagExceptions = 1 << 2
	flagsKnown     = 1<<3 - 1
	widthHasFlags  = 0x80 // in the width byte: a byte of flags follows
)

// exceptionBits is about what one exception costs: a gap and the high bits, one
// or two bytes each. Where more than one value in exceptionBits-8 lies in the
// half of the range far from the base, exceptions cannot pay (each would cost
// more than the bit that it saves the others).
const exceptionBits = 20

// plan is how a slice of values is going to be packed.
type plan struct {
	base       int64
	width      int
	cost       int // bits
	downward   bool
	exceptions bool
}

// appendInts appends values as an integer column; scratch is for differences.
func appendInts(dst []byte, values []int64, scratch *[]int64) []byte {
	if len(values) == 0 {
		return dst
	}
	low, high := values[0], values[0]
	lowest, highest := int64(math.MaxInt64), int64(math.MinInt64) // differences
	last, way := values[0], uint64(0)
	for _, v := range values[1:] {
		low, high = min(low, v), max(high, v)
		d := v - last
		lowest, highest = min(lowest, d), max(highest, d)
		way += uint64(max(d, -d))
		last = v
	}
	p := planFor(values, low, high)
	tempting := p.exceptions || span(lowest, highest) < p.width || smooth(len(values), low, high, way)
	if len(values) < 3 || low == high || !tempting {
		return appendPacked(dst, values, p, 0)
	}
	d := slices.Grow((*scratch)[:0], len(values))[:len(values)-1]
	*scratch = d
	last = values[0]
	for i, v := range values[1:] {
		d[i] = v - last
		last = v
	}
	if q := planFor(d, lowest, highest); q.cost+firstBits < p.cost {
		dst = append(dst, widthHasFlags|byte(q.width), q.flags()|flagDelta)
		return appendPacked(binary.AppendVarint(dst, values[0]), d, q, flagDelta)
	}
	return appendPacked(dst, values, p, 0)
}

// smooth reports whether the mean of the n - 1 steps, which add up to way, is an
// eighth of the range at most. It is a third for uniform noise, about a fifth for
// exponential, and little for ramps with a few jumps, where differences pay.
func smooth(n int, low, high int64, way uint64) bool {
	width := uint64(high) - uint64(low)
	return width >= 1<<47 || // way may have overflowed
		way/uint64(n) <= width/8
}

// firstBits is about what differences cost on top: flags and the first value.
const firstBits = 64

// span is the number of bits of the range from low to high.
func span(low, high int64) int { return bits.Len64(uint64(high) - uint64(low)) }

func (p *plan) flags() byte {
	var f byte
	if p.downward {
		f |= flagDownward
	}
	if p.exceptions {
		f |= flagExceptions
	}
	return f
}

// planFor finds the cheapest base and width for values between low and high.
func planFor(values []int64, low, high int64) plan {
	full := span(low, high)
	p := plan{base: low, width: full, cost: full * len(values)}
	if full < 3 || len(values) < 8 {
		return p
	}
	above := uint64(0) // values in the upper half of the range, without a branch
	for _, v := range values {
		above += (uint64(v) - uint64(low)) >> (full - 1)
	}
	rare := len(values) / (exceptionBits - 8)
	switch {
	case int(above) <= rare:
		p.patch(values, full)
	case len(values)-int(above) <= rare:
		p.base, p.downward = high, true
		p.patch(values, full)
	}
	return p
}

// patch looks for a smaller width that makes exceptions pay.
func (p *plan) patch(values []int64, full int) {
	var count [65]int // values by the bits they need
	for _, v := range values {
		count[bits.Len64(p.distance(v))]++
	}
	exceptions := 0
	for w := full - 1; w >= 0; w-- {
		exceptions += count[w+1]
		cost := w*len(values) + exceptions*(exceptionBits+full-w)
		if cost < p.cost {
			p.width, p.cost, p.exceptions = w, cost, true
		}
	}
}

func (p *plan) distance(v int64) uint64 {
	if p.downward {
		return uint64(p.base) - uint64(v)
	}
	return uint64(v) - uint64(p.base)
}

// appendPacked appends base, bits and exceptions, behind the width unless the
// caller has written that (delta).
func appendPacked(dst []byte, values []int64, p plan, delta byte) []byte {
	if delta == 0 {
		if f := p.flags(); f != 0 {
			dst = append(dst, widthHasFlags|byte(p.width), f)
		} else {
			dst = append(dst, byte(p.width))
		}
	}
	dst = binary.AppendVarint(dst, p.base)
	dst = pack(dst, values, &p)
	if !p.exceptions {
		return dst
	}
	count := 0
	for _, v := range values {
		if p.distance(v)>>p.width != 0 {
			count++
		}
	}
	dst = binary.AppendUvarint(dst, uint64(count))
	last := 0
	for i, v := range values {
		if rest := p.distance(v) >> p.width; rest != 0 {
			dst = binary.AppendUvarint(dst, uint64(i-last))
			dst = binary.AppendUvarint(dst, rest)
			last = i
		}
	}
	return dst
}

func packedBytes(n, width int) int { return (n*width + 7) / 8 }

// pack appends the low width bits of each value's distance, least significant
// bit first.
func pack(dst []byte, values []int64, p *plan) []byte {
	if p.width == 0 {
		return dst
	}
	from, size := len(dst), packedBytes(len(values), p.width)
	dst = slices.Grow(dst, size+8)
	out := dst[from : from+size+8] // whole words are stored; the spare ones are cut off again
	mask := ^uint64(0) >> (64 - p.width)
	sign, base := uint64(0), uint64(p.base)
	if p.downward { // base - v == ^(v - base - 1)
		sign, base = ^uint64(0), base+1
	}
	var word uint64
	used, at := 0, 0
	for _, v := range values {
		d := ((uint64(v) - base) ^ sign) & mask
		word |= d << used
		if used += p.width; used >= 64 {
			binary.LittleEndian.PutUint64(out[at:], word)
			at += 8
			used -= 64
			word = d >> (p.width - used)
		}
	}
	for ; used > 0; used -= 8 {
		out[at] = byte(word)
		word >>= 8
		at++
	}
	return dst[:from+size]
}

// ints reads an integer column into values.
func (r *reader) ints(values []int64) {
	if len(values) == 0 {
		return
	}
	width, flags := r.byte(), byte(0)
	if width&widthHasFlags != 0 {
		width &^= widthHasFlags
		flags = r.byte()
	}
	if width > 64 || flags&^flagsKnown != 0 {
		r.fail()
		return
	}
	rest := values
	if flags&flagDelta != 0 {
		values[0] = r.varint()
		rest = values[1:]
	}
	base := r.varint()
	packed := r.take(packedBytes(len(rest), int(width)))
	if r.bad {
		return
	}
	unpack(rest, packed, int(width))
	if flags&flagExceptions != 0 {
		r.exceptions(rest, int(width))
	}
	if flags&flagDownward != 0 {
		for i, d := range rest {
			rest[i] = base - d
		}
	} else {
		for i, d := range rest {
			rest[i] = base + d
		}
	}
	if flags&flagDelta != 0 {
		last := values[0]
		for i, d := range rest {
			last += d
			rest[i] = last
		}
	}
}

func (r *reader) exceptions(values []int64, width int) {
	count := r.uvarint(uint64(len(values)))
	at := uint64(0)
	for range count {
		at += r.uvarint(uint64(len(values)))
		high := r.uvarint(^uint64(0) >> width)
		if at >= uint64(len(values)) || r.bad {
			r.fail()
			return
		}
		values[at] |= int64(high << width)
	}
}

// unpack is the reverse of pack: values become distances.
func unpack(values []int64, packed []byte, width int) {
	if width == 0 {
		clear(values)
		return
	}
	mask := ^uint64(0) >> (64 - width)
	i, at := 0, 0 // at is in bits
	if width <= 57 {
		for ; i < len(values) && at>>3+8 <= len(packed); i++ {
			values[i] = int64(binary.LittleEndian.Uint64(packed[at>>3:]) >> (at & 7) & mask)
			at += width
		}
	}
	for ; i < len(values); i++ {
		values[i] = int64(bitsAt(packed, at, width) & mask)
		at += width
	}
}

// bitsAt collects width bits from bit at on, byte by byte.
func bitsAt(packed []byte, at, width int) uint64 {
	b := packed[at>>3 : (at+width+7)>>3]
	v, shift := uint64(b[0])>>(at&7), 8-at&7
	for _, c := range b[1:] {
		v |= uint64(c) << shift
		shift += 8
	}
	return v
}
