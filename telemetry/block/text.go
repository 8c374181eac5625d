package block

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// The codecs of the text column, its first byte.
const (
	codecNone = 0
	codecS2   = 1 // reserved
	codecZstd = 2
)

// compressFrom is the length in bytes from which compression is tried: the few
// names of a uniform fleet do not shrink, and zstd costs some 10 us.
const compressFrom = 512

// appendText appends the text column's body: codec, length, bytes. The encoder
// is made when it is needed first, because most blocks never do.
func appendText(dst, text []byte, encoder **zstd.Encoder) ([]byte, error) {
	if len(text) >= compressFrom {
		if *encoder == nil {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
				zstd.WithEncoderCRC(false), zstd.WithAllLitEntropyCompression(true), zstd.WithLowerEncoderMem(true))
			if err != nil {
				return nil, fmt.Errorf("make compressor: %w", err)
			}
			*encoder = e
		}
		from := len(dst)
		dst = append(dst, codecZstd)
		dst = binary.AppendUvarint(dst, uint64(len(text)))
		head := len(dst)
		dst = (*encoder).EncodeAll(text, dst)
		if len(dst)-head < len(text) {
			return dst, nil
		}
		dst = dst[:from]
	}
	dst = append(dst, codecNone)
	dst = binary.AppendUvarint(dst, uint64(len(text)))
	return append(dst, text...), nil
}

// readText decodes the text column's body into buf's memory; the result shares
// nothing with body.
func readText(body, buf []byte, decoder **zstd.Decoder) ([]byte, error) {
	r := reader{p: body}
	codec := r.byte()
	size := int(r.uvarint(TextBytesMax))
	if r.bad {
		return nil, fmt.Errorf("%w: text", ErrCorrupt)
	}
	switch codec {
	case codecNone:
		buf = append(buf[:0], r.p...)
	case codecZstd:
		if *decoder == nil {
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(TextBytesMax))
			if err != nil {
				return nil, fmt.Errorf("make decompressor: %w", err)
			}
			*decoder = d
		}
		// A frame that would decode to more than size stops there or at the
		// limit of the decoder; either is found out below.
		out, err := (*decoder).DecodeAll(r.p, buf[:0])
		if err != nil {
			return nil, fmt.Errorf("%w: text: %w", ErrCorrupt, err)
		}
		buf = out
	default:
		return nil, fmt.Errorf("%w: text has codec %d", ErrCorrupt, codec)
	}
	if len(buf) != size {
		return nil, fmt.Errorf("%w: text has %d bytes, not %d", ErrCorrupt, len(buf), size)
	}
	return buf, nil
}
