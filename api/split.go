package api

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// splitBufferBytes is read from a body at a time; a few hundred messages fit.
const splitBufferBytes = 64 << 10

// splitter cuts a body into messages without judging them: what is inside one
// is the parser's business, so that a bad message costs only itself.
type splitter interface {
	// next appends the following message to buf. number counts from 1: the line
	// of NDJSON, the element of an array. io.EOF ends the body; errTooLong
	// belongs to this message only and next may be called again; any other error
	// is final.
	next(buf []byte) (message []byte, number int, err error)
}

var errTooLong = errors.New("message over the size limit")

// envelopeError is a body whose outer form is broken: what came before stays.
type envelopeError struct{ text string }

func (e *envelopeError) Error() string { return e.text }

var utf8BOM = []byte{0xEF, 0xBB, 0xBF}

func newSplitter(r io.Reader, lines bool, messageBytesMax int) splitter {
	b := bufio.NewReaderSize(r, splitBufferBytes)
	if start, _ := b.Peek(len(utf8BOM)); bytes.Equal(start, utf8BOM) {
		_, _ = b.Discard(len(utf8BOM)) // they are buffered
	}
	if lines {
		return &lineSplitter{r: b, max: messageBytesMax}
	}
	return &jsonSplitter{r: b, max: messageBytesMax}
}

// lineSplitter is for NDJSON: one message per line, empty lines do not count as
// messages but as lines.
type lineSplitter struct {
	r    *bufio.Reader
	max  int
	line int
}

func (s *lineSplitter) next(buf []byte) ([]byte, int, error) {
	for {
		s.line++
		message, err := s.readLine(buf)
		switch {
		case errors.Is(err, errTooLong):
			return nil, s.line, err
		case len(message) > len(buf):
			return message, s.line, nil // an error, if any, comes again
		case err != nil:
			return nil, s.line, err
		}
	}
}

// readLine appends a line without the white space around it.
func (s *lineSplitter) readLine(buf []byte) ([]byte, error) {
	begin, tooLong := len(buf), false
	for {
		part, err := s.r.ReadSlice('\n')
		if !tooLong {
			if len(buf) == begin {
				part = bytes.TrimLeft(part, " \t\r\n")
			}
			buf = append(buf, part...)
			// The end of the line may still be trimmed off.
			tooLong = len(buf)-begin > s.max+len("\r\n")
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && err != io.EOF {
			return buf[:begin], err // half a line is no message
		}
		buf = buf[:begin+len(bytes.TrimRight(buf[begin:], " \t\r\n"))]
		if tooLong || len(buf)-begin > s.max {
			return buf[:begin], errTooLong
		}
		return buf, err
	}
}

// jsonSplitter is for application/json: an array of messages, one message, or
// several behind each other.
type jsonSplitter struct {
	r       *bufio.Reader
	max     int
	count   int
	started bool
	array   bool
	ended   bool // the array's ] was read
}

func (s *jsonSplitter) next(buf []byte) ([]byte, int, error) {
	c, err := s.skipSpace()
	if !s.started && err == nil {
		s.started = true
		if s.array = c == '['; s.array {
			if c, err = s.skipSpace(); err == nil && c == ']' {
				s.ended = true
				c, err = s.skipSpace()
			}
		}
	} else if s.array && !s.ended && err == nil {
		c, err = s.separator(c)
	}
	switch {
	case err == io.EOF && s.array && !s.ended:
		return nil, s.count, &envelopeError{fmt.Sprintf("the array is not closed after element %d: add ]", s.count)}
	case err != nil:
		return nil, s.count, err
	case s.ended:
		return nil, s.count, &envelopeError{fmt.Sprintf("%q follows the end of the array: send one array, or one message per line as application/x-ndjson", c)}
	}
	s.count++
	buf, err = s.value(buf)
	return buf, s.count, err
}

// separator reads what may follow an element: a comma and the first byte of the
// next one, or the end.
func (s *jsonSplitter) separator(c byte) (byte, error) {
	switch c {
	case ',':
		next, err := s.skipSpace()
		if err == nil && next == ']' {
			err = &envelopeError{fmt.Sprintf("a comma follows element %d but no element: leave it out", s.count)}
		}
		return next, err
	case ']':
		s.ended = true
		return s.skipSpace()
	default:
		return 0, &envelopeError{fmt.Sprintf("%q follows element %d: separate elements with commas", c, s.count)}
	}
}

func (s *jsonSplitter) skipSpace() (byte, error) {
	for {
		c, err := s.r.ReadByte()
		if err != nil {
			return 0, err
		}
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			return c, nil
		}
	}
}

// value appends one value, whose first byte has just been read. Brackets are
// counted, not matched: the parser finds what is wrong inside.
func (s *jsonSplitter) value(buf []byte) ([]byte, error) {
	if err := s.r.UnreadByte(); err != nil {
		return nil, err
	}
	begin, tooLong := len(buf), false
	v := valueScanner{array: s.array}
	for done := false; !done; {
		window, err := s.r.Peek(max(1, s.r.Buffered()))
		switch {
		case len(window) > 0: // the error, if any, comes again
		case err != io.EOF:
			return nil, err
		case s.array:
			return nil, &envelopeError{fmt.Sprintf("element %d is not closed: the body ends inside it", s.count)}
		default:
			done = true // half a value goes to the parser, which says what is missing
			continue
		}
		var n int
		n, done = v.scan(window)
		if tooLong = tooLong || len(buf)-begin+n > s.max; !tooLong {
			buf = append(buf, window[:n]...)
		}
		if _, err := s.r.Discard(n); err != nil {
			return nil, err
		}
	}
	if tooLong {
		return nil, errTooLong
	}
	return bytes.TrimRight(buf, " \t\r\n"), nil
}

// valueScanner finds the end of a value in whatever pieces it comes.
type valueScanner struct {
	array    bool // the value is an element
	begun    bool
	depth    int
	inString bool
	escaped  bool
}

// scan takes n bytes of the window; done says that the value ends there.
func (v *valueScanner) scan(window []byte) (n int, done bool) {
	for i, c := range window {
		if v.inString {
			switch {
			case v.escaped:
				v.escaped = false
			case c == '\\':
				v.escaped = true
			case c == '"':
				v.inString = false
				if v.depth <= 0 {
					return i + 1, true
				}
			}
			continue
		}
		switch c {
		case '"':
			v.inString = true
		case '{', '[':
			v.depth++
		case '}', ']':
			if v.depth == 0 && v.begun && c == ']' && v.array {
				return i, true // of the array around us
			}
			if v.depth--; v.depth <= 0 {
				return i + 1, true
			}
		case ',', '\n':
			// The end of a value without brackets: a comma in an array, the line elsewhere.
			if v.depth == 0 && v.begun && v.array == (c == ',') {
				return i, true
			}
		}
		v.begun = true
	}
	return len(window), false
}
