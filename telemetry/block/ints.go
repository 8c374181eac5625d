package block

import (
	"encoding/binary"
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
	exceptions int
}

// appendInts appends values as an integer column; scratch is for differences.
func appendInts(dst []byte, values []int64, scratch *[]int64) []byte {
	if len(values) == 0 {
		return dst
	}
	low, high := bounds(values)
	if low == high {
		return binary.AppendVarint(append(dst, 0), low)
	}
	s := sampleOf(values, low, high)
	p := planFor(values, low, high, s.above)
	if len(values) < 3 || !s.smooth {
		return appendPacked(dst, values, p, 0)
	}
	d := slices.Grow((*scratch)[:0], len(values))[:len(values)-1]
	*scratch = d
	last := values[0]
	for i, v := range values[1:] {
		d[i] = v - last
		last = v
	}
	lowest, highest := bounds(d)
	if q := planFor(d, lowest, highest, sampleOf(d, lowest, highest).above); q.cost+firstBits < p.cost {
		dst = append(dst, widthHasFlags|byte(q.width), q.flags()|flagDelta)
		return appendPacked(binary.AppendVarint(dst, values[0]), d, q, flagDelta)
	}
	return appendPacked(dst, values, p, 0)
}

// bounds returns the smallest and the largest of some values, in two lanes,
// because each comparison waits for the one before.
func bounds(values []int64) (low, high int64) {
	low, high = values[0], values[0]
	low2, high2 := low, high
	for len(values) >= 4 {
		v := values[:4]
		low, high = min(low, v[0]), max(high, v[0])
		low2, high2 = min(low2, v[1]), max(high2, v[1])
		low, high = min(low, v[2]), max(high, v[2])
		low2, high2 = min(low2, v[3]), max(high2, v[3])
		values = values[4:]
	}
	for _, v := range values {
		low, high = min(low, v), max(high, v)
	}
	return min(low, low2), max(high, high2)
}

// sample is what some of the values, always the same ones, tell about all.
type sample struct {
	above  int  // in sampleSize, are in the upper half of the range
	smooth bool // the mean step is small
}

// sampleSize is the number of values looked at. Of a column where exceptions or
// differences pay well it is very unlikely that the sample does not show it, and
// then the column is only larger than it could be.
const sampleSize = 32

// sampleOf calls values smooth if the mean step from one to the next is an eighth
// of the range at most. It is a third for uniform noise, about a fifth for
// exponential, and little for ramps with a few jumps, where differences pay.
func sampleOf(values []int64, low, high int64) sample {
	width := uint64(high) - uint64(low)
	half := uint(max(bits.Len64(width), 1)-1) & 63
	step := 1 + (len(values)-1)/sampleSize
	above, way, n := uint64(0), uint64(0), 0
	last := values[0]
	for i := step; i < len(values); i += step {
		v, before := values[i], values[i-1]
		above += (uint64(last) - uint64(low)) >> half
		d := v - before
		way += uint64(max(d, -d))
		last = v
		n++
	}
	if n == 0 {
		return sample{}
	}
	smooth := way/uint64(n) <= width/8 || width >= 1<<58 // way may have overflowed
	return sample{int(above) * sampleSize / n, smooth}
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
	if p.exceptions > 0 {
		f |= flagExceptions
	}
	return f
}

// planFor finds the cheapest base and width for values between low and high, of
// which about sampled in sampleSize are in the upper half of the range.
func planFor(values []int64, low, high int64, sampled int) plan {
	full := span(low, high)
	p := plan{base: low, width: full, cost: full * len(values)}
	// One in exceptionBits-8 may be an exception, twice that is given to chance.
	const rare = 2 * sampleSize / (exceptionBits - 8)
	switch {
	case full < 3 || len(values) < 8:
	case sampled <= rare:
		p.patch(values, full)
	case sampled >= sampleSize-rare:
		down := plan{base: high, width: full, cost: p.cost, downward: true}
		if down.patch(values, full); down.exceptions > 0 {
			return down
		}
	}
	return p
}

// patch looks for a smaller width that makes exceptions pay.
func (p *plan) patch(values []int64, full int) {
	var count, odd [65]int // values by the bits they need, in two lanes
	for i, v := range values {
		if n := bits.Len64(p.distance(v)); i&1 == 0 {
			count[n]++
		} else {
			odd[n]++
		}
	}
	exceptions := 0
	for w := full - 1; w >= 0; w-- {
		exceptions += count[w+1] + odd[w+1]
		cost := w*len(values) + exceptions*(exceptionBits+full-w)
		if cost < p.cost {
			p.width, p.cost, p.exceptions = w, cost, exceptions
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
	if p.exceptions == 0 {
		return dst
	}
	return appendExceptions(dst, values, &p)
}

// appendExceptions appends the high bits of the values that need more than width.
func appendExceptions(dst []byte, values []int64, p *plan) []byte {
	dst = binary.AppendUvarint(dst, uint64(p.exceptions))
	last := 0
	for i, v := range values {
		if rest := p.distance(v) >> (p.width & 63); rest != 0 {
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
	k := packer{mask: ^uint64(0) >> (64 - p.width), base: uint64(p.base)}
	if p.downward { // base - v == ^(v - base - 1)
		k.sign, k.base = ^uint64(0), k.base+1
	}
	if p.width <= 16 {
		n := len(values) &^ 3
		out = k.fours(out, values[:n], uint(p.width))
		values = values[n:]
	}
	k.rest(out, values, uint(p.width))
	return dst[:from+size]
}

// packer is the state of pack: word holds the used bits that are not stored yet.
type packer struct {
	mask, base, sign uint64
	word             uint64
	used             uint
}

// fours packs a multiple of four values, which fill one word at most together.
func (k *packer) fours(out []byte, values []int64, width uint) []byte {
	mask, base, sign := k.mask, k.base, k.sign
	word, used := k.word, k.used
	for len(values) >= 4 && len(out) >= 8 {
		d0 := ((uint64(values[0]) - base) ^ sign) & mask
		d1 := ((uint64(values[1]) - base) ^ sign) & mask
		d2 := ((uint64(values[2]) - base) ^ sign) & mask
		d3 := ((uint64(values[3]) - base) ^ sign) & mask
		d := d0 | d1<<(width&63) | (d2|d3<<(width&63))<<(2*width&63)
		word |= d << (used & 63)
		if used += 4 * width; used >= 64 {
			binary.LittleEndian.PutUint64(out, word)
			out = out[8:]
			used -= 64
			word = d >> (4*width - used) // all of it was stored if used is 0
		}
		values = values[4:]
	}
	k.word, k.used = word, used
	return out
}

// rest packs values one by one and stores the last word.
func (k *packer) rest(out []byte, values []int64, width uint) {
	word, used := k.word, k.used
	for _, v := range values {
		d := ((uint64(v) - k.base) ^ k.sign) & k.mask
		word |= d << (used & 63)
		if used += width; used >= 64 {
			binary.LittleEndian.PutUint64(out, word)
			out = out[8:]
			used -= 64
			word = d >> (width - used)
		}
	}
	if used > 0 {
		binary.LittleEndian.PutUint64(out, word)
	}
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
