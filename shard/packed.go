package shard

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

// packedWindow is how far back a packed snapshot refers: several sections of
// devices, and little beside the state for the one snapshot that a node takes at
// a time.
const packedWindow = 1 << 20

// newPacker compresses a snapshot behind its magic. What it writes depends on
// what it is given alone.
func newPacker(w io.Writer) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(packedWindow), zstd.WithLowerEncoderMem(true))
}

// newUnpacker reads what newPacker has written. Memory is bounded by the window,
// whatever the frame promises.
func newUnpacker(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(packedWindow))
}

// atEnd verifies that a packed snapshot ends where it should, its checksum
// included.
func atEnd(r io.Reader) error {
	switch n, err := io.ReadFull(r, make([]byte, 1)); {
	case n > 0:
		return fmt.Errorf("snapshot goes on behind its last section")
	case err != io.EOF:
		return fmt.Errorf("end of snapshot: %w", err)
	}
	return nil
}

// countingWriter counts what it passes on.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// countingReader counts what it has passed on.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// snapshotSizes are those of the last snapshot taken or restored, packed.
type snapshotSizes struct {
	state atomic.Int64 // without the pending blocks
	whole atomic.Int64
}
