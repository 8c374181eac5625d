package block

import (
	"encoding/binary"

	"github.com/sluice-iot/sluice/telemetry"
)

// kind is the type of a value column. The numbers are those of telemetry.Kind,
// which the format reserves in full.
type kind uint8

const (
	kindNull    = kind(telemetry.KindNull)    // nothing is stored
	kindBool    = kind(telemetry.KindBool)    // 0 or 1
	kindInt     = kind(telemetry.KindInt64)   // reserved: integers are decimals of scale 0
	kindFloat   = kind(telemetry.KindFloat64) // bits
	kindDecimal = kind(telemetry.KindDecimal) // mantissas and scales; scale 0 is an integer
	kindText    = kind(telemetry.KindText)    // numbers in a dictionary
	kinds       = 6
)

// series collects what messages have any number of by name: readings or
// attributes. Every pair of name and kind is a column of values; a message's
// sequence of columns is its shape. Devices of one model have the same shape
// again and again, so the format stores each shape once and a number per
// message, and begin, column, end expect the shape of the message before.
type series struct {
	names   dict
	columns []column
	find    []uint32 // column + 1 by name * kinds + kind
	shapes  dict     // column numbers, 4 bytes each
	shape   []int64  // per message
	total   int      // values in all columns

	at      int      // values of the message at hand
	current []uint32 // its columns, once strays is set
	guess   []uint32 // columns of the message before
	guessID int64    // shape of the message before, -1 before the first
	strays  bool     // the message at hand differs from guess
	grown   int      // bytes that the message at hand added to names and shapes
}

type column struct {
	first, last uint64 // words of the name
	size        int    // of the name in bytes
	kind        kind
	scale       uint8   // of all values, unless mixed
	mixed       bool    // scales differ and are listed
	mantissas   []int64 // or bits, or dictionary numbers
	scales      []uint8 // of a mixed column
	name        string  // in names
	nameID      uint32
}

// is reports whether the column has this name and kind.
func (c *column) is(name string, first, last uint64, k kind) bool {
	return c.first == first && c.last == last && c.size == len(name) && c.kind == k &&
		(len(name) <= wordsMax || c.name == name)
}

// decimal appends a value; scales are listed only once they differ.
func (c *column) decimal(mantissa int64, scale uint8) {
	if c.mixed || scale != c.scale {
		c.rescaled(scale)
	}
	c.mantissas = append(c.mantissas, mantissa)
}

// put appends a value of the column's kind.
func (c *column) put(k kind, v *telemetry.Value) {
	if k == kindDecimal && (c.mixed || v.Scale != c.scale) {
		c.rescaled(v.Scale)
	}
	c.mantissas = append(c.mantissas, v.Mantissa)
}

func (c *column) rescaled(scale uint8) {
	if !c.mixed {
		if len(c.mantissas) == 0 {
			c.scale = scale
			return
		}
		c.mixed = true
		for range c.mantissas {
			c.scales = append(c.scales, c.scale)
		}
	}
	c.scales = append(c.scales, scale)
}

func newSeries() series {
	return series{names: newDict(), shapes: newDict(), guessID: -1}
}

func (s *series) begin() {
	s.at, s.strays, s.grown = 0, false, 0
}

// column returns the column for the next value of the message at hand, which
// must be appended to it.
func (s *series) column(name string, k kind) *column {
	if s.at < len(s.guess) {
		first, last := words(name)
		if c := &s.columns[s.guess[s.at]]; c.is(name, first, last, k) {
			s.take()
			return c
		}
	}
	return s.stray(name, k)
}

// take notes that the next value goes where it is expected.
func (s *series) take() {
	if s.strays {
		s.current = append(s.current, s.guess[s.at])
	}
	s.at++
}

// stray finds or opens the column of the next value, which is not the expected
// one.
func (s *series) stray(name string, k kind) *column {
	i := s.at
	s.at++
	if !s.strays {
		s.strays = true
		s.current = append(s.current[:0], s.guess[:i]...)
	}
	id := s.names.id(name)
	for uint64(len(s.find)) < (uint64(id)+1)*kinds {
		s.find = append(s.find, 0)
	}
	at := &s.find[int(id)*kinds+int(k)]
	if *at == 0 {
		s.open(id, k)
		*at = uint32(len(s.columns))
	}
	s.current = append(s.current, *at-1)
	return &s.columns[*at-1]
}

// open appends a column, with the slices of one that an earlier block had there.
func (s *series) open(id uint32, k kind) {
	n := len(s.columns)
	if n == cap(s.columns) {
		s.columns = append(s.columns, column{})
	} else {
		s.columns = s.columns[:n+1]
	}
	s.grown += len(s.names.at(id)) + 2*nameBytes
	c := &s.columns[n]
	name := s.names.at(id)
	*c = column{name: name, size: len(name), nameID: id, kind: k, mantissas: c.mantissas[:0], scales: c.scales[:0]}
	c.first, c.last = words(name)
}

// end finishes the message and returns what names and shape added to the size.
func (s *series) end() int {
	s.total += s.at
	if s.guessID >= 0 && !s.strays && s.at == len(s.guess) {
		s.shape = append(s.shape, s.guessID)
		return 0
	}
	if !s.strays { // a part of the expected shape
		s.current = append(s.current[:0], s.guess[:s.at]...)
	}
	var key [64]byte
	b := key[:0]
	for _, c := range s.current {
		b = binary.LittleEndian.AppendUint32(b, c)
	}
	known := s.shapes.len()
	s.guessID = int64(s.shapes.idOf(b))
	s.shape = append(s.shape, s.guessID)
	s.guess = append(s.guess[:0], s.current...)
	if s.shapes.len() > known {
		s.grown += nameBytes + len(b)
	}
	return s.grown
}

// seriesColumnsKept bounds the columns whose memory is kept for the next block.
const seriesColumnsKept = 4096

func (s *series) reset() {
	s.names.reset()
	s.shapes.reset()
	if cap(s.columns) > seriesColumnsKept {
		s.columns, s.find = nil, nil
	}
	s.columns, s.find, s.shape = s.columns[:0], s.find[:0], s.shape[:0]
	s.guess, s.guessID, s.total = s.guess[:0], -1, 0
}
