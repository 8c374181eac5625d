package importer

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// What a cell is.
type cellKind uint8

const (
	cellText cellKind = iota
	cellEmpty
	cellNumber
	cellBool
)

var errTooBig = errors.New("is beyond the range of a 64-bit float")

// kindOf tells what a cell is. Empty is what the tools that write CSV put where
// there is no value.
func kindOf(cell string) (cellKind, error) {
	switch strings.ToLower(cell) {
	case "", "nan", "na", "n/a", "null", "none", "inf", "+inf", "-inf", "infinity", "-infinity":
		return cellEmpty, nil
	case "true", "false":
		return cellBool, nil
	}
	for i := range len(cell) { // ParseFloat knows hexadecimal numbers and underscores too
		if strings.IndexByte("0123456789+-.eE", cell[i]) < 0 {
			return cellText, nil
		}
	}
	f, err := strconv.ParseFloat(cell, 64)
	switch {
	case err == nil:
		return cellNumber, nil
	case math.IsInf(f, 0):
		return cellNumber, errTooBig
	}
	return cellText, nil
}

// appendNumber appends a cell of kind cellNumber as JSON: as it is written where
// JSON writes it so too, so that no digit changes, else in its shortest form.
func appendNumber(dst []byte, cell string) []byte {
	if jsonNumber(cell) {
		return append(dst, cell...)
	}
	f, _ := strconv.ParseFloat(cell, 64) // kindOf has read it
	return strconv.AppendFloat(dst, f, 'g', -1, 64)
}

// jsonNumber knows the number of RFC 8259: -? (0 | [1-9][0-9]*) frac? exp?
func jsonNumber(s string) bool {
	s = strings.TrimPrefix(s, "-")
	whole := digits(s)
	if whole == 0 || whole > 1 && s[0] == '0' {
		return false
	}
	s = s[whole:]
	if strings.HasPrefix(s, ".") {
		n := digits(s[1:])
		if n == 0 {
			return false
		}
		s = s[1+n:]
	}
	if s != "" && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if s != "" && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		n := digits(s)
		if n == 0 {
			return false
		}
		s = s[n:]
	}
	return s == ""
}

// digits counts the digits at the beginning.
func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}
