package importer

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"
)

// blanks as a delimiter means runs of blanks and tabs.
const blanks = 0

// delimiterOf reads the option; for "auto" it looks at the first line.
func delimiterOf(option string, first []byte) (byte, error) {
	switch option {
	case "", "auto":
		return guessDelimiter(first), nil
	case "tab", `\t`:
		return '\t', nil
	case "space", "whitespace", " ":
		return blanks, nil
	}
	if len(option) != 1 || option[0] == '"' || option[0] >= utf8.RuneSelf || option[0] < ' ' && option[0] != '\t' {
		return 0, fmt.Errorf("delimiter %q is not one character: use , ; | tab, space (runs of blanks) or auto", option)
	}
	return option[0], nil
}

// guessDelimiter takes what occurs most often in the first line.
func guessDelimiter(first []byte) byte {
	best, most := byte(','), 0
	for _, d := range []byte{',', ';', '\t', '|'} {
		if n := bytes.Count(first, []byte{d}); n > most {
			best, most = d, n
		}
	}
	if most == 0 && bytes.ContainsRune(bytes.TrimSpace(first), ' ') {
		return blanks
	}
	return best
}

var (
	errQuoteOpen  = errors.New(`a quoted field does not end in this line`)
	errQuoteAfter = errors.New(`text follows the end of a quoted field`)
)

// split appends the fields of a line to dst. Fields are parts of text or, where
// quotes are doubled inside, copies.
func split(dst [][]byte, text []byte, delimiter byte) ([][]byte, error) {
	if delimiter == blanks {
		return splitBlanks(dst, text), nil
	}
	for {
		var field []byte
		if trimmed := bytes.TrimLeft(text, " "); len(trimmed) > 0 && trimmed[0] == '"' {
			var err error
			if field, text, err = quoted(trimmed[1:]); err != nil {
				return dst, err
			}
			if len(text) > 0 && text[0] != delimiter {
				return dst, errQuoteAfter
			}
		} else {
			at := bytes.IndexByte(text, delimiter)
			if at < 0 {
				at = len(text)
			}
			field, text = bytes.TrimSpace(text[:at]), text[at:]
		}
		dst = append(dst, field)
		if len(text) == 0 {
			return dst, nil
		}
		text = text[1:]
	}
}

// quoted reads a field after its opening quote up to and with the closing one,
// and blanks behind it.
func quoted(text []byte) (field, rest []byte, err error) {
	doubled := false
	for i := 0; i < len(text); i++ {
		if text[i] != '"' {
			continue
		}
		if i+1 < len(text) && text[i+1] == '"' {
			doubled = true
			i++
			continue
		}
		field = text[:i]
		if doubled {
			field = bytes.ReplaceAll(field, []byte(`""`), []byte(`"`))
		}
		return field, bytes.TrimLeft(text[i+1:], " "), nil
	}
	return nil, nil, errQuoteOpen
}

func splitBlanks(dst [][]byte, text []byte) [][]byte {
	for {
		text = bytes.TrimLeft(text, " \t")
		if len(text) == 0 {
			return dst
		}
		at := bytes.IndexAny(text, " \t")
		if at < 0 {
			at = len(text)
		}
		dst = append(dst, text[:at])
		text = text[at:]
	}
}
