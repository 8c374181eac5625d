package importer

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// source is the input, line by line. Only one goroutine reads it.
type source struct {
	name   string
	file   *os.File // nil for a reader that is not ours
	raw    countingReader
	r      *bufio.Reader
	gz     bool
	size   int64 // of the file, 0 when not known
	line   int64 // lines read so far
	offset int64 // bytes read so far, decompressed
}

// countingReader counts what was read of the file as it lies on the disk.
type countingReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// sourceBytes is the read-ahead; its first fill is the sample that decides what
// the columns are.
const sourceBytes = 256 << 10

func openSource(cfg *Config) (*source, error) {
	s := &source{name: cfg.Path}
	if cfg.Path == "-" {
		s.name, s.raw.r = "standard input", cfg.Stdin
	} else {
		f, err := os.Open(cfg.Path)
		if err != nil {
			return nil, fmt.Errorf("open input: %w", err)
		}
		st, err := f.Stat()
		if err == nil && st.IsDir() {
			err = fmt.Errorf("%s is a directory: name a file", cfg.Path)
		}
		if err != nil {
			_ = f.Close() // read only
			return nil, fmt.Errorf("open input: %w", err)
		}
		s.file, s.raw.r, s.size = f, f, st.Size()
	}
	if err := s.unpack(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// unpack recognises gzip by its first two bytes.
func (s *source) unpack() error {
	outer := bufio.NewReaderSize(&s.raw, 64<<10)
	magic, err := outer.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", s.name, err)
	}
	s.r = bufio.NewReaderSize(outer, sourceBytes)
	if !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return nil
	}
	s.gz = true
	z, err := gzip.NewReader(outer)
	if err != nil {
		return fmt.Errorf("read %s: %w", s.name, err)
	}
	s.r = bufio.NewReaderSize(z, sourceBytes)
	return nil
}

func (s *source) close() {
	if s.file != nil {
		_ = s.file.Close() // read only
	}
}

// peek returns what the buffer holds at the beginning, at least one line unless
// the input or the buffer is shorter. Nothing is consumed.
func (s *source) peek() ([]byte, error) {
	for n := 1; ; n = s.r.Buffered() + 1 {
		if n > sourceBytes {
			return s.r.Peek(s.r.Buffered())
		}
		_, err := s.r.Peek(n)
		b, _ := s.r.Peek(s.r.Buffered()) // always there
		if errors.Is(err, io.EOF) || bytes.IndexByte(b, '\n') >= 0 {
			return b, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", s.name, err)
		}
	}
}

// headBytesMax of the beginning identify the input in the state file.
const headBytesMax = 4096

// head is a digest of the first n bytes, at most headBytesMax, of the input.
func (s *source) head(n int) (bytes int, sum string, err error) {
	b, err := s.r.Peek(min(n, headBytesMax))
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, "", fmt.Errorf("read %s: %w", s.name, err)
	}
	h := sha256.Sum256(b)
	return len(b), hex.EncodeToString(h[:16]), nil
}

// skip goes to a position of an earlier run; nothing has been consumed since
// the beginning.
func (s *source) skip(line, offset int64) error {
	if s.file != nil && !s.gz && offset > int64(s.r.Buffered()) && offset <= s.size {
		if _, err := s.file.Seek(offset, io.SeekStart); err != nil {
			return fmt.Errorf("resume %s: %w", s.name, err)
		}
		s.raw.n.Store(offset)
		s.r.Reset(&s.raw)
	} else if _, err := io.CopyN(io.Discard, s.r, offset); err != nil {
		return fmt.Errorf("resume %s at byte %d: %w: it is shorter than when the import began", s.name, offset, err)
	}
	s.line, s.offset = line, offset
	return nil
}

// chunk is some lines, so that the reader and the sender meet rarely.
type chunk struct {
	lines []line
	err   error // the input ended with it after the lines; nil at its regular end
	raw   int64 // bytes of the file read so far
}

// line is one line of the input without its end. Its position is what a state
// file would say when everything before it is done.
type line struct {
	text    []byte
	number  int64 // from 1
	offset  int64 // of its first byte
	next    int64 // of the first byte of the line behind it
	tooLong bool  // text is its beginning
}

const (
	chunkLines = 256
	chunkBytes = 64 << 10
	// chunksAhead keeps the reader busy while the sender works; 4 x 64 KiB.
	chunksAhead = 4
)

// read sends all lines to out and closes it.
func (s *source) read(ctx context.Context, out chan<- chunk) {
	defer close(out)
	for {
		c, more := s.chunk()
		c.raw = s.raw.n.Load()
		select {
		case out <- c:
		case <-ctx.Done():
			return
		}
		if !more {
			return
		}
	}
}

// chunk reads until it is full, or the input has nothing more right now.
func (s *source) chunk() (c chunk, more bool) {
	data := make([]byte, 0, chunkBytes)
	for len(c.lines) < chunkLines && len(data) < chunkBytes/2 {
		l, grown, err := s.next(data)
		data = grown
		if l.number > 0 {
			c.lines = append(c.lines, l)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				c.err = fmt.Errorf("read %s after line %d: %w", s.name, s.line, err)
			}
			return c, false
		}
		if s.r.Buffered() == 0 {
			break // a live source may take its time
		}
	}
	return c, true
}

// next reads one line, whose text it appends to data.
func (s *source) next(data []byte) (line, []byte, error) {
	l := line{offset: s.offset}
	from := len(data)
	for {
		part, err := s.r.ReadSlice('\n')
		s.offset += int64(len(part))
		room := lineBytesMax + 2 - (len(data) - from)
		l.tooLong = l.tooLong || len(part) > room
		data = append(data, part[:min(len(part), max(0, room))]...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && len(data) == from {
			return line{}, data, err
		}
		s.line++
		l.number, l.next = s.line, s.offset
		l.text = bytes.TrimRight(data[from:], "\r\n")
		if l.number == 1 {
			l.text = bytes.TrimPrefix(l.text, []byte("\xef\xbb\xbf"))
		}
		return l, data, err
	}
}
