package telemetry

import (
	"fmt"
	"strconv"
	"strings"
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

// CheckAttributes says what is wrong with the attributes of one device, in the
// bounds that hold for a message's metadata too.
func CheckAttributes(list []Attribute) error {
	if len(list) > AttributesMax {
		return fmt.Errorf("%d attributes: a device has at most %d, leave some out", len(list), AttributesMax)
	}
	size := 0
	for i, a := range list {
		switch {
		case !validName([]byte(a.Key)):
			return fmt.Errorf("attribute %s: a key is 1 to %d bytes of UTF-8 without control characters", quoteName(a.Key), NameBytesMax)
		case !utf8.ValidString(a.Value) || strings.IndexByte(a.Value, 0) >= 0:
			return fmt.Errorf("attribute %s: a value is UTF-8 without U+0000", quoteName(a.Key))
		case i > 0 && list[i-1].Key == a.Key:
			return fmt.Errorf("attribute %s is there twice: name it once", quoteName(a.Key))
		}
		size += len(a.Key) + len(a.Value)
	}
	if size > AttributeBytesMax {
		return fmt.Errorf("%d bytes of keys and values: a device has at most %d, shorten them", size, AttributeBytesMax)
	}
	return nil
}
