package telemetry

import (
	"encoding/json"
	"hash/maphash"
	"slices"
	"strings"
	"unicode/utf8"
)

// expectedKey is a key that the object before had at this position.
type expectedKey struct {
	token  string // `"key":` as it is written without white space
	name   string // flattened
	value  string // of the last attribute of this name
	parent int    // position of the key of the object that it is in, -1 at the top
}

// open reads the opening brace; empty says that the closing one follows.
func open(p []byte, i int) (next int, empty, ok bool) {
	if p[i] != '{' {
		return 0, false, false
	}
	if i = space(p, i+1); i < len(p) && p[i] == '}' {
		return i + 1, true, true
	}
	return i, false, true
}

// more reads a comma, or the closing brace: then done is set.
func more(p []byte, i int) (next int, done, ok bool) {
	if i < len(p) && p[i] <= ' ' {
		i = space(p, i)
	}
	if i >= len(p) {
		return 0, false, false
	}
	switch p[i] {
	case '}':
		return i + 1, true, true
	case ',':
		if i++; i < len(p) && p[i] <= ' ' {
			i = space(p, i)
		}
		return i, false, i < len(p)
	}
	return 0, false, false
}

// hasToken reports whether token and more are at p[i:].
func hasToken(p []byte, i int, token string) bool {
	end := i + len(token)
	return end < len(p) && string(p[i:end]) == token
}

// strayKey reads the n-th key of a list with its colon, into keys[n], if it is
// not written as expected. As long as all keys so far were the expected ones
// their names are distinct, because those were; from the first stray one on,
// distinct decides and the expectation is built anew. Keys of nested objects
// count as names too: that refuses a little too much, but nothing that is
// written twice gets through.
func (f *fastPath) strayKey(keys *[]expectedKey, n, parent int, p []byte, i int) (int, bool) {
	if i >= len(p) || p[i] != '"' {
		return 0, false
	}
	f.name = f.name[:0]
	if parent >= 0 {
		f.name = append(append(f.name, (*keys)[parent].name...), '.')
	}
	prefix, from := len(f.name), i+1
	end, ok := text(p, from)
	if ok {
		f.name = append(f.name, p[from:end]...)
	} else {
		var key string
		if key, end, ok = f.escaped(p, i); !ok {
			return 0, false
		}
		f.name = append(f.name, key...)
	}
	if i, ok = colon(p, end+1); !ok {
		return 0, false
	}
	if n < len(*keys) {
		if key := &(*keys)[n]; key.parent == parent && key.name == string(f.name) { // only white space differs
			return i, true
		}
		*keys = (*keys)[:n]
	}
	if len(f.name) == prefix || !validName(f.name) {
		return 0, false
	}
	name, ok := f.distinct(*keys, f.name)
	if ok {
		*keys = append(*keys, expectedKey{token: f.token(p[from:end]), name: name, parent: parent})
	}
	return i, ok
}

// token returns a key as it is written, with quotes and colon.
func (f *fastPath) token(raw []byte) string {
	if len(raw) > internBytesMax {
		return `"` + string(raw) + `":`
	}
	s := f.tokens.slot(raw)
	if t := s.text; len(t) != len(raw)+len(`"":`) || t[1:len(t)-2] != string(raw) {
		s.text = `"` + string(raw) + `":`
	}
	return s.text
}

// escapedText is a string with escapes, quotes included, and what it means.
type escapedText struct{ quoted, text string }

// escaped reads a string that holds escapes: p[i] is the opening quote, p[end]
// the closing one. Python writes every letter that is not ASCII as an escape, so
// these strings come again and again as well; encoding/json sees each once.
func (f *fastPath) escaped(p []byte, i int) (text string, end int, ok bool) {
	if end = stringEnd(p, i); end >= len(p) {
		return "", 0, false
	}
	quoted := p[i : end+1]
	if f.escapes == nil {
		f.escapes = make([]escapedText, internEscapes)
	}
	e := &f.escapes[maphash.Bytes(f.texts.seed, quoted)%internEscapes]
	if e.quoted == string(quoted) {
		return e.text, end, true
	}
	if !utf8.Valid(quoted) || !json.Valid(quoted) {
		return "", 0, false
	}
	text = unquote(quoted)
	if len(quoted) <= internBytesMax {
		*e = escapedText{string(quoted), text}
	}
	return text, end, true
}

// distinct interns a name and reports whether it differs from those before. A
// slot of the cache that is or was one of theirs has the stamp of this list, so
// only names in such a slot must be looked for.
func (f *fastPath) distinct(before []expectedKey, b []byte) (string, bool) {
	for ; f.stamped < len(before); f.stamped++ {
		f.names.slot([]byte(before[f.stamped].name)).stamp = f.stamp
	}
	s := f.names.slot(b)
	if s.text != string(b) {
		s.text = string(b)
	}
	if s.stamp == f.stamp {
		for i := range before {
			if before[i].name == s.text {
				return "", false
			}
		}
	}
	s.stamp = f.stamp
	f.stamped++
	return s.text, true
}

// sortAttributes sorts by key and reports whether the keys are distinct.
func sortAttributes(m *Message) bool {
	a := m.Attributes
	sorted, size := true, 0
	for i := range a {
		size += len(a[i].Key) + len(a[i].Value)
		sorted = sorted && (i == 0 || a[i-1].Key < a[i].Key)
	}
	if len(a) > AttributesMax || size > AttributeBytesMax {
		return false
	}
	if sorted {
		return true
	}
	slices.SortFunc(a, func(x, y Attribute) int { return strings.Compare(x.Key, y.Key) })
	for i := 1; i < len(a); i++ {
		if a[i-1].Key == a[i].Key {
			return false
		}
	}
	return true
}
