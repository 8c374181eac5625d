package telemetry

import (
	"strconv"
	"unicode"
	"unicode/utf8"
)

// validName reports whether b may be a sensor name or an attribute key: 1 to 128
// bytes of UTF-8 without control characters (Unicode category Cc).
func validName(b []byte) bool {
	if len(b) == 0 || len(b) > NameBytesMax {
		return false
	}
	ascii := true
	for _, c := range b {
		if c < 0x20 || c == 0x7f {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	if ascii {
		return true
	}
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size == 1 || unicode.IsControl(r) {
			return false
		}
		b = b[size:]
	}
	return true
}

// quoteName prepares a name for a reason: quoted, printable, at most about 64
// characters of it.
func quoteName(name string) string {
	const shown = 64
	if len(name) > shown {
		cut := shown
		for cut > 0 && !utf8.RuneStart(name[cut]) {
			cut--
		}
		return strconv.Quote(name[:cut]) + "..."
	}
	return strconv.Quote(name)
}
