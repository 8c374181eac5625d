package block

import "unsafe"

// wordsMax is the length up to which two words tell strings apart.
const wordsMax = 16

// words returns two overlapping words that, together with the length, hold every
// byte of a string of at most wordsMax bytes, so that such strings are compared,
// hashed and copied without a call. Their byte order is the machine's; nothing
// derived from them leaves the process.
func words(s string) (first, last uint64) {
	p, n := unsafe.Pointer(unsafe.StringData(s)), len(s)
	switch {
	case n > wordsMax:
		return 0, 0
	case n >= 8:
		return *(*uint64)(p), *(*uint64)(unsafe.Add(p, n-8))
	case n >= 4:
		return uint64(*(*uint32)(p)), uint64(*(*uint32)(unsafe.Add(p, n-4)))
	case n > 0:
		return uint64(s[0]), uint64(s[n/2])<<8 | uint64(s[n-1])
	}
	return 0, 0
}

// appendWords appends a string of n bytes from its words.
func appendWords(dst []byte, n int, s string, first, last uint64) []byte {
	at := len(dst)
	if n < 8 || n > wordsMax || cap(dst)-at < wordsMax {
		return append(dst, s...)
	}
	dst = dst[:at+n]
	p := unsafe.Pointer(unsafe.SliceData(dst[at:]))
	*(*uint64)(p) = first
	*(*uint64)(unsafe.Add(p, n-8)) = last
	return dst
}
