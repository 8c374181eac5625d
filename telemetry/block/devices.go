package block

import (
	"encoding/binary"
	"unsafe"
)

// Ways to write the device dictionary.
const (
	devicesPlain    = 0 // texts
	devicesNumbered = 1 // a few prefixes, and a number of fixed digits behind them
)

// splitDevices tries to see every device id as a prefix and a number of fixed
// digits, and reports whether few prefixes are enough. Random digits do not
// compress as text; as numbers they take 3.3 bits each.
func (b *Builder) splitDevices() bool {
	n, s := b.devices.len(), &b.scratch
	if n < 4 {
		return false
	}
	if s.prefixes.table == nil {
		s.prefixes = newDict()
	}
	s.prefixes.reset()
	s.numbers, s.classes = s.numbers[:0], s.classes[:0]
	class, prefix := int64(-1), "" // of the id before
	for i := range n {
		id := b.devices.at(uint32(i))
		if class >= 0 {
			if number, ok := sameDigits(id, prefix); ok {
				s.classes = append(s.classes, class)
				s.numbers = append(s.numbers, number)
				continue
			}
		}
		digits, number := splitDigits(id)
		head := id[:len(id)-digits]
		if class < 0 || len(prefix) != len(head)+1 || prefix[len(head)] != byte(digits) || prefix[:len(head)] != head {
			s.key = append(append(s.key[:0], head...), byte(digits))
			class = int64(s.prefixes.idOf(s.key))
			prefix = s.prefixes.at(uint32(class))
		}
		s.classes = append(s.classes, class)
		s.numbers = append(s.numbers, number)
		if s.prefixes.len() > n/4 {
			return false
		}
	}
	return true
}

// splitDigits returns the number that id ends with and how many digits it has,
// at most 18.
func splitDigits(id string) (digits int, number int64) {
	unit := int64(1)
	for i := len(id) - 1; i >= 0 && digits < len(pow10)-1 && id[i]-'0' <= 9; i-- {
		number += int64(id[i]-'0') * unit
		unit *= 10
		digits++
	}
	return digits, number
}

// sameDigits returns the number behind an id's prefix, if that is the one of the
// id before, which is followed by its count of digits: 1 to 8 here. All of them
// are looked at and put together at once.
func sameDigits(id, prefix string) (number int64, ok bool) {
	n := len(prefix) - 1
	digits := len(id) - n
	if digits != int(prefix[n]) || uint(digits-1) > 7 || len(id) < 8 || id[:n] != prefix[:n] {
		return 0, false
	}
	const zeros, high = 0x3030303030303030, 0xf0f0f0f0f0f0f0f0
	w := binary.LittleEndian.Uint64(unsafe.Slice(unsafe.StringData(id), len(id))[len(id)-8:])
	others := uint64(1)<<(64-8*digits) - 1 // bytes in front of the digits
	w = w&^others | zeros&others
	if w&high != zeros || (w+0x0606060606060606)&high != zeros {
		return 0, false
	}
	w -= zeros
	w = (w*10 + w>>8) & 0x00ff00ff00ff00ff
	w = (w*100 + w>>16) & 0x0000ffff0000ffff
	return int64(uint32(w*10_000 + w>>32)), true
}

func (b *Builder) devicesColumn(dst []byte, numbered bool) []byte {
	s := &b.scratch
	dst = binary.AppendUvarint(dst, uint64(b.devices.len()))
	if numbered {
		dst = append(dst, devicesNumbered)
		dst = binary.AppendUvarint(dst, uint64(s.prefixes.len()))
		s.ints = s.prefixes.lengths(s.ints[:0])
		for i := range s.ints {
			s.ints[i]-- // without the digits
		}
		dst = b.ints(dst, s.ints)
		for i := range s.ints {
			p := s.prefixes.at(uint32(i))
			s.ints[i] = int64(p[len(p)-1])
		}
		dst = b.ints(dst, s.ints)
		dst = b.ints(dst, s.classes)
		dst = b.ints(dst, s.numbers)
	} else {
		dst = append(dst, devicesPlain)
		s.ints = b.devices.lengths(s.ints[:0])
		dst = b.ints(dst, s.ints)
	}
	// A device seen for the first time is 0, others count from the newest one
	// back, so that a block of distinct devices and a run of one cost nothing.
	x := s.ints[:0]
	seen := int64(0)
	for _, d := range b.device {
		x = append(x, seen-d)
		if d == seen {
			seen++
		}
	}
	s.ints = x
	return b.ints(dst, x)
}
