package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
)

// split checks the syntax of a payload and cuts it into its elements.
func split(payload []byte) ([][]byte, bad) {
	if len(bytes.TrimLeft(payload, " \t\r\n")) == 0 {
		return nil, badEmpty
	}
	text := replaceNaN(payload)
	if err := json.Unmarshal(text, new(json.RawMessage)); err != nil {
		return nil, bad("not JSON: " + syntaxReason(err))
	}
	switch trimmed := bytes.Trim(payload, " \t\r\n"); trimmed[0] {
	case '{':
		return [][]byte{trimmed}, ""
	case '[':
		elements := cut(trimmed[1 : len(trimmed)-1])
		if len(elements) == 0 {
			return nil, badArray
		}
		return elements, ""
	default:
		return nil, badShape
	}
}

func syntaxReason(err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return syntax.Error()
	}
	return "syntax error"
}

// cut splits the inside of a valid array at its commas.
func cut(inside []byte) [][]byte {
	var elements [][]byte
	depth, from := 0, 0
	for i := 0; i < len(inside) && len(elements) <= MessagesMax; i++ {
		switch inside[i] {
		case '"':
			i = stringEnd(inside, i)
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',':
			if depth == 0 {
				elements = append(elements, bytes.Trim(inside[from:i], " \t\r\n"))
				from = i + 1
			}
		}
	}
	if last := bytes.Trim(inside[from:], " \t\r\n"); len(last) > 0 {
		elements = append(elements, last)
	}
	return elements
}

// stringEnd returns the index of the quote that closes the string opened at i,
// or the end of p.
func stringEnd(p []byte, i int) int {
	for i++; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return len(p)
}

// replaceNaN writes null for the tokens NaN, Infinity and -Infinity that
// Python's json and others emit for numbers that JSON cannot express. Between
// strings valid JSON holds no capital letter, so nothing else can be meant, and
// what was no JSON before is none after.
func replaceNaN(p []byte) []byte {
	if !bytes.Contains(p, []byte("NaN")) && !bytes.Contains(p, []byte("Infinity")) {
		return p
	}
	out := make([]byte, 0, len(p)+16)
	for i := 0; i < len(p); i++ {
		rest := p[i:]
		switch {
		case p[i] == '"':
			end := min(stringEnd(p, i)+1, len(p))
			out = append(out, p[i:end]...)
			i = end - 1
		case bytes.HasPrefix(rest, []byte("NaN")):
			out = append(out, "null"...)
			i += len("NaN") - 1
		case bytes.HasPrefix(rest, []byte("Infinity")):
			out = append(out, "null"...)
			i += len("Infinity") - 1
		case bytes.HasPrefix(rest, []byte("-Infinity")):
			out = append(out, "null"...)
			i += len("-Infinity") - 1
		default:
			out = append(out, p[i])
		}
	}
	return out
}

// member is a key of an object with its value as written.
type member struct {
	key   string
	value json.RawMessage
}

// members lists an object's keys in the order of their last occurrence; earlier
// ones of the same key are dropped.
func members(object []byte) []member {
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		return nil
	}
	var list []member
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil
		}
		m := member{key: key.(string)}
		if err := d.Decode(&m.value); err != nil {
			return nil
		}
		list = append(list, m)
	}
	return lastOfEach(list)
}

func lastOfEach(list []member) []member {
	seen := make(map[string]bool, len(list))
	kept := len(list)
	for i := len(list) - 1; i >= 0; i-- {
		if !seen[list[i].key] {
			seen[list[i].key] = true
			kept--
			list[kept] = list[i]
		}
	}
	return list[kept:]
}

func isNull(raw json.RawMessage) bool   { return len(raw) == 0 || raw[0] == 'n' }
func isString(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '"' }
func isObject(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '{' }
func isArray(raw json.RawMessage) bool  { return len(raw) > 0 && raw[0] == '[' }
func isNumber(raw json.RawMessage) bool {
	return len(raw) > 0 && (raw[0] == '-' || raw[0]-'0' <= 9)
}

// unquote decodes a valid JSON string.
func unquote(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
