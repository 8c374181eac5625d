package mux

import (
	"encoding/binary"
	"errors"
)

// errShort and errTrailing are all a decoder can say: which field it was does
// not help whoever reads the log.
var (
	errShort    = errors.New("message ends too early")
	errTrailing = errors.New("message has bytes behind its end")
)

// cursor reads fields off a buffer and remembers the first error, so that a
// decoder checks once at its end. Byte fields alias the buffer.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail() {
	c.err, c.b = errShort, nil
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail()
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) uint8() byte {
	if len(c.b) == 0 {
		c.fail()
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) uint64() uint64 {
	if len(c.b) < 8 {
		c.fail()
		return 0
	}
	v := binary.LittleEndian.Uint64(c.b)
	c.b = c.b[8:]
	return v
}

// take returns the next n bytes; nil for none.
func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

// bytes returns a field with its length in front.
func (c *cursor) bytes() []byte { return c.take(c.uvarint()) }

// end is the decoder's verdict.
func (c *cursor) end() error {
	if c.err == nil && len(c.b) != 0 {
		return errTrailing
	}
	return c.err
}

func appendBytes(b, field []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(field))), field...)
}

// uvarintBytesMax is the longest encoding of a field's length.
const uvarintBytesMax = binary.MaxVarintLen64
