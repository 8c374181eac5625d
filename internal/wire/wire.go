package wire

import (
	"encoding/binary"
	"errors"
	"math"
)

// ErrShort says that the input ended inside a field, or that a length in it
// points behind its end.
var ErrShort = errors.New("input ends inside a field")

// AppendUint appends an unsigned varint.
func AppendUint(dst []byte, v uint64) []byte { return binary.AppendUvarint(dst, v) }

// AppendInt appends a zigzag varint.
func AppendInt(dst []byte, v int64) []byte { return binary.AppendVarint(dst, v) }

// AppendFloat appends the eight bytes of a float64, bit for bit.
func AppendFloat(dst []byte, v float64) []byte {
	return binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
}

// AppendString appends a length and the bytes of s.
func AppendString[S ~string | ~[]byte](dst []byte, s S) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// AppendBool appends one byte, 0 or 1.
func AppendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// Reader reads fields in the order they were appended.
type Reader struct {
	rest []byte
	err  error
}

// NewReader reads from b, which it neither copies nor changes.
func NewReader(b []byte) *Reader { return &Reader{rest: b} }

// Err is the first error met, nil when every field so far was whole.
func (r *Reader) Err() error { return r.err }

// Len is the number of bytes not read yet.
func (r *Reader) Len() int { return len(r.rest) }

// Rest is what has not been read yet; it aliases the input.
func (r *Reader) Rest() []byte { return r.rest }

func (r *Reader) fail() {
	r.rest, r.err = nil, ErrShort
}

// Uint reads an unsigned varint.
func (r *Reader) Uint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// Int reads a zigzag varint.
func (r *Reader) Int() int64 {
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// Float reads a float64.
func (r *Reader) Float() float64 {
	b := r.Bytes(8)
	if b == nil {
		return 0
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(b))
}

// Byte reads one byte.
func (r *Reader) Byte() byte {
	b := r.Bytes(1)
	if b == nil {
		return 0
	}
	return b[0]
}

// Bool reads one byte that is not 0 for true.
func (r *Reader) Bool() bool { return r.Byte() != 0 }

// Bytes reads the next n bytes; they alias the input. n < 0 fails.
func (r *Reader) Bytes(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.fail()
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

// Blob reads a length and that many bytes; they alias the input.
func (r *Reader) Blob() []byte {
	n := r.Uint()
	if n > uint64(len(r.rest)) {
		r.fail()
		return nil
	}
	return r.Bytes(int(n))
}

// String reads a length and a string of its own.
func (r *Reader) String() string { return string(r.Blob()) }

// Count reads the length of a list whose elements take at least bytesMin bytes
// each, so that a hostile length cannot make the caller allocate more than a
// multiple of the input.
func (r *Reader) Count(bytesMin int) int {
	n := r.Uint()
	if n > uint64(len(r.rest)/max(bytesMin, 1)) {
		r.fail()
		return 0
	}
	return int(n)
}
