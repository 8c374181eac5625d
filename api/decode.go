package api

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// zstdWindowBytesMax bounds what one compressed request makes us allocate; 8 MiB
// is what RFC 9659 asks decoders of Content-Encoding to support.
const zstdWindowBytesMax = 8 << 20

// errBodyTooLong ends a body at Config.BodyBytesMax.
var errBodyTooLong = errors.New("body over the size limit")

// encodingError is a compressed body that does not decompress.
type encodingError struct{ err error }

func (e *encodingError) Error() string { return e.err.Error() }
func (e *encodingError) Unwrap() error { return e.err }

// bodyIsLines decides from Content-Type whether a body is one message per line
// or JSON. A body without a type is taken as JSON, which reads lines too; so is
// one with the type that curl, wget and fetch give to what has none of its own.
func bodyIsLines(h http.Header) (bool, error) {
	text := h.Get("Content-Type")
	if text == "" {
		return false, nil
	}
	media, _, err := mime.ParseMediaType(text)
	if err != nil && media == "" {
		media = text
	}
	switch media {
	case "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "application/jsonlines":
		return true, nil
	case "application/json", "application/x-www-form-urlencoded", "text/plain":
		return false, nil
	}
	return false, newProblem(http.StatusUnsupportedMediaType, "Content-Type %q is not understood: use application/x-ndjson for one message per line, or application/json", text)
}

// decompress undoes Content-Encoding. close gives back what it holds.
func decompress(body io.Reader, encoding string) (r io.Reader, close func(), err error) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "", "identity":
		return body, func() {}, nil
	case "gzip", "x-gzip":
		return &lazyGzip{src: body}, func() {}, nil
	case "zstd":
		// Concurrency 1 decodes on our goroutine and starts none.
		z, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindowBytesMax), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, err
		}
		return &taggedReader{z}, z.Close, nil
	}
	return nil, nil, newProblem(http.StatusUnsupportedMediaType, "Content-Encoding %q is not understood: use gzip, zstd or none", encoding)
}

// lazyGzip opens the stream at the first read: gzip.NewReader reads a header,
// and an error of that belongs to the body.
type lazyGzip struct {
	src io.Reader
	z   *gzip.Reader
}

func (l *lazyGzip) Read(p []byte) (int, error) {
	if l.z == nil {
		z, err := gzip.NewReader(l.src)
		if err != nil {
			return 0, tagged(err)
		}
		l.z = z
	}
	n, err := l.z.Read(p)
	return n, tagged(err)
}

type taggedReader struct{ r io.Reader }

func (t *taggedReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	return n, tagged(err)
}

// tagged marks errors of decompression; those of the connection below pass.
func tagged(err error) error {
	switch {
	case err == nil, err == io.EOF:
		return err
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrCRCMismatch):
		return &encodingError{err}
	}
	var corrupt interface{ Timeout() bool } // net errors have it, corrupt data does not
	if errors.As(err, &corrupt) || errors.Is(err, http.ErrBodyReadAfterClose) {
		return err
	}
	return &encodingError{err}
}

// cappedReader counts what passes and stops with errBodyTooLong.
type cappedReader struct {
	r    io.Reader
	left int64
	n    int64
}

func (c *cappedReader) Read(p []byte) (int, error) {
	if c.left < 0 {
		return 0, errBodyTooLong
	}
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1] // one byte more tells "exactly the limit" from "over it"
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.left -= int64(n); c.left < 0 {
		return n - 1, errBodyTooLong
	}
	return n, err
}
