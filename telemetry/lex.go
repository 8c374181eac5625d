package telemetry

import (
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"unicode/utf8"
)

// The functions here read one JSON token at p[i:] and return the index behind
// it. They accept a subset of the grammar, never more than it; false means "not
// for the fast path", valid or not.

func space(p []byte, i int) int {
	for i < len(p) && (p[i] == ' ' || p[i] == '\n' || p[i] == '\t' || p[i] == '\r') {
		i++
	}
	return i
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// text reads a string without escapes and returns where its inside ends: p[i] is
// the first byte behind the opening quote, p[end] the closing quote. Eight bytes
// at a time (Mycroft's zero-byte test): a byte is of interest if it is a quote,
// a backslash, a control character or not ASCII. Borrows make false hits only
// above a true one, so the lowest is right.
func text(p []byte, i int) (end int, ok bool) {
	for i+8 <= len(p) {
		w := binary.LittleEndian.Uint64(p[i:])
		quote, slash := w^(ones*'"'), w^(ones*'\\')
		hit := ((quote - ones) &^ quote) | ((slash - ones) &^ slash) | ((w - ones*0x20) &^ w) | w
		if hit &= highs; hit != 0 {
			i += bits.TrailingZeros64(hit) >> 3
			if p[i] == '"' {
				return i, true
			}
			if p[i] < utf8.RuneSelf {
				return 0, false
			}
			return wideText(p, i)
		}
		i += 8
	}
	for ; i < len(p); i++ {
		switch c := p[i]; {
		case c == '"':
			return i, true
		case c == '\\' || c < 0x20:
			return 0, false
		case c >= utf8.RuneSelf:
			return wideText(p, i)
		}
	}
	return 0, false
}

// wideText goes on from the first byte that is not ASCII.
func wideText(p []byte, from int) (end int, ok bool) {
	for i := from; i < len(p); i++ {
		switch c := p[i]; {
		case c == '"':
			return i, utf8.Valid(p[from:i])
		case c == '\\' || c < 0x20:
			return 0, false
		}
	}
	return 0, false
}

// anyText is text for strings that may hold escapes; those are checked by
// encoding/json.
func anyText(p []byte, i int) (end int, ok bool) {
	if end, ok = text(p, i); ok {
		return end, true
	}
	if end = stringEnd(p, i-1); end >= len(p) {
		return 0, false
	}
	quoted := p[i-1 : end+1]
	return end, utf8.Valid(quoted) && json.Valid(quoted)
}

// colon reads a colon with white space on either side.
func colon(p []byte, i int) (int, bool) {
	if i < len(p) && p[i] == ':' {
		i++
	} else if i = space(p, i); i < len(p) && p[i] == ':' {
		i++
	} else {
		return 0, false
	}
	if i < len(p) && p[i] > ' ' {
		return i, true
	}
	i = space(p, i)
	return i, i < len(p)
}

// number reads a number of any length by the grammar of JSON and returns where
// it ends.
func number(p []byte, i int) (end int, ok bool) {
	if i < len(p) && p[i] == '-' {
		i++
	}
	from := i
	if i = digits(p, i); i == from || p[from] == '0' && i > from+1 {
		return 0, false
	}
	if i < len(p) && p[i] == '.' {
		from = i + 1
		if i = digits(p, from); i == from {
			return 0, false
		}
	}
	if i < len(p) && p[i]|0x20 == 'e' {
		i++
		if i < len(p) && (p[i] == '+' || p[i] == '-') {
			i++
		}
		from = i
		if i = digits(p, from); i == from {
			return 0, false
		}
	}
	return i, true
}

func digits(p []byte, i int) int {
	for i < len(p) && p[i]-'0' <= 9 {
		i++
	}
	return i
}

// value reads a number as a Value. Up to 18 digits are read in one go, what is
// longer or has an exponent is read again by parseNumber.
func value(p []byte, i int) (v Value, end int, ok bool) {
	start, negative := i, false
	if p[i] == '-' {
		negative = true
		i++
	}
	from, mantissa := i, uint64(0)
	for ; i < len(p) && p[i]-'0' <= 9; i++ {
		mantissa = mantissa*10 + uint64(p[i]-'0')
	}
	length, scale := i-from, 0
	if length == 0 || p[from] == '0' && length > 1 {
		return Value{}, 0, false
	}
	if i < len(p) && p[i] == '.' {
		i++
		fraction := i
		for ; i < len(p) && p[i]-'0' <= 9; i++ {
			mantissa = mantissa*10 + uint64(p[i]-'0')
		}
		if scale = i - fraction; scale == 0 {
			return Value{}, 0, false
		}
	}
	if length+scale > 18 || mantissa > mantissaMax || i < len(p) && p[i]|0x20 == 'e' || negative && mantissa == 0 {
		if end, ok = number(p, start); !ok {
			return Value{}, 0, false
		}
		v, ok = parseNumber(p[start:end])
		return v, end, ok
	}
	m := int64(mantissa)
	if negative {
		m = -m
	}
	return decimalValue(m, scale), i, true
}

// word reads a literal.
func word(p []byte, i int, literal string) (int, bool) {
	end := i + len(literal)
	return end, end <= len(p) && string(p[i:end]) == literal
}

// skipDepth bounds the recursion of skip; what is nested deeper is left to the
// slow path.
const skipDepth = 8

// skip reads any value.
func skip(p []byte, i, depth int) (int, bool) {
	if i >= len(p) {
		return 0, false
	}
	switch p[i] {
	case '"':
		end, ok := anyText(p, i+1)
		return end + 1, ok
	case 't':
		return word(p, i, "true")
	case 'f':
		return word(p, i, "false")
	case 'n':
		return word(p, i, "null")
	case '{', '[':
		if depth == skipDepth {
			return 0, false
		}
		return skipNested(p, i, depth+1)
	}
	return number(p, i)
}

func skipNested(p []byte, i, depth int) (int, bool) {
	object := p[i] == '{'
	closing := p[i] + 2 // '}' and ']' in ASCII
	if i = space(p, i+1); i < len(p) && p[i] == closing {
		return i + 1, true
	}
	for {
		var ok bool
		if object {
			if i >= len(p) || p[i] != '"' {
				return 0, false
			}
			if i, ok = anyText(p, i+1); !ok {
				return 0, false
			}
			if i, ok = colon(p, i+1); !ok {
				return 0, false
			}
		}
		if i, ok = skip(p, i, depth); !ok {
			return 0, false
		}
		switch i = space(p, i); {
		case i >= len(p):
			return 0, false
		case p[i] == closing:
			return i + 1, true
		case p[i] != ',':
			return 0, false
		}
		i = space(p, i+1)
	}
}
