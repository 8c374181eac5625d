package block

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sluice-iot/sluice/telemetry"
)

// EntryKind is the first byte of every block, so that a log that holds entries
// of several kinds can tell which are blocks.
const EntryKind = 0x01

// Version is the format that Append writes, the second byte.
const Version = 1

// Limits of a block; Append refuses what is over them and Decode what claims to
// be. They bound what a hostile block of a few bytes can make Decode allocate.
const (
	MessagesMax    = 1 << 16
	ReadingsMax    = 1 << 20  // 512 messages of 1,024 sensors, twice
	AttributesMax  = 1 << 20  // as for readings
	TextBytesMax   = 32 << 20 // names, texts and quarantined payloads, uncompressed
	OriginBytesMax = 255      // of a peer id
)

// Errors of this package.
var (
	ErrCorrupt  = errors.New("block is corrupt")
	ErrVersion  = errors.New("block has a format version that this program does not know")
	ErrTooLarge = errors.New("block is over a limit")
)

// Header is the uncompressed beginning of a block: who sent it and as which.
type Header struct {
	Namespace uint32
	Origin    string // peer id of the node that built it
	Epoch     uint64 // the origin's durable counter of starts
	Seq       uint64 // per (origin, epoch, shard), from 1 without gaps
	Shard     telemetry.ShardID
	Messages  uint32 // set by Append
}

func (h *Header) append(dst []byte) []byte {
	dst = append(dst, EntryKind, Version)
	dst = binary.AppendUvarint(dst, uint64(h.Namespace))
	dst = binary.AppendUvarint(dst, uint64(h.Shard))
	dst = binary.AppendUvarint(dst, h.Epoch)
	dst = binary.AppendUvarint(dst, h.Seq)
	dst = binary.AppendUvarint(dst, uint64(h.Messages))
	dst = append(dst, byte(len(h.Origin)))
	return append(dst, h.Origin...)
}

// ParseHeader reads the header alone; the rest of data is not looked at and not
// verified. Origin is the only allocation.
func ParseHeader(data []byte) (Header, error) {
	r := reader{p: data}
	h, origin, err := r.header()
	if err != nil {
		return Header{}, err
	}
	h.Origin = string(origin)
	return h, nil
}

// header reads all but Origin, which it returns as part of the input.
func (r *reader) header() (Header, []byte, error) {
	if len(r.p) < 2 || r.p[0] != EntryKind {
		return Header{}, nil, fmt.Errorf("%w: it does not begin like a block", ErrCorrupt)
	}
	if r.p[1] != Version {
		return Header{}, nil, fmt.Errorf("%w: %d", ErrVersion, r.p[1])
	}
	r.p = r.p[2:]
	h := Header{
		Namespace: uint32(r.uvarint(1<<32 - 1)),
		Shard:     telemetry.ShardID(r.uvarint(1<<32 - 1)),
		Epoch:     r.uvarint(1<<64 - 1),
		Seq:       r.uvarint(1<<64 - 1),
		Messages:  uint32(r.uvarint(MessagesMax)),
	}
	origin := r.take(int(r.byte()))
	if r.bad {
		return Header{}, nil, fmt.Errorf("%w: header", ErrCorrupt)
	}
	return h, origin, nil
}
