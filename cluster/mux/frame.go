package mux

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
)

// Kind says what a frame is for. 64..127 are the application's; of these the
// kinds from KindUrgent on are small and pass before bulk.
type Kind uint8

// The kinds below KindApplication belong to the mux; the numbers are part of
// the frame format.
const (
	kindPing        Kind = 1
	kindAppend      Kind = 8
	kindHeartbeat   Kind = 9
	kindVote        Kind = 10
	kindPreVote     Kind = 11
	kindTimeoutNow  Kind = 12
	kindSnapshot    Kind = 13 // stream
	KindApplication Kind = 64
	KindUrgent      Kind = 112
	kindMax         Kind = 127
)

// applicationKinds is how many kinds services can use.
const applicationKinds = int(kindMax-KindApplication) + 1

// frameVersion is that of the format, the bodies of raft messages included.
const frameVersion = 2

// headerBytes is the fixed part of a frame; see FORMAT.md.
const headerBytes = 28

// checkedFrom is where the checksum begins: behind length and checksum.
const checkedFrom = 8

// Bounds of Config.FrameBytesMax: below, raft's ordinary appends would not fit;
// above, one frame would hold up a connection for seconds.
const (
	frameBytesMaxMin = 64 << 10
	frameBytesMaxMax = 256 << 20
)

const flagResponse = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is a frame's fixed part without length and checksum.
type header struct {
	kind        Kind
	response    bool
	status      status
	namespace   uint32
	group       uint32
	incarnation uint32 // of the receiver
	request     uint32 // 0: no answer wanted
}

// class is the queue a frame waits in.
type class uint8

const (
	classControl class = iota
	classRaft
	classBulk
	classes
)

// class of a frame: every answer to raft is small and urgent, appends keep their
// order among themselves, bulk is whatever services send.
func (h *header) class() class {
	switch {
	case h.kind == kindAppend && !h.response:
		return classRaft
	case h.kind >= KindApplication && h.kind < KindUrgent:
		return classBulk
	default:
		return classControl
	}
}

// frame is one encoded frame on its way to the writer, which recycles it.
type frame struct {
	buf     []byte
	class   class
	patient bool // may wait for company, see conn.push
	pool    int8 // index of framePools, -1 for none
}

// framePools recycle buffers of a few sizes; larger frames are rare and left to
// the garbage collector.
type framePools struct {
	pools [len(framePoolBytes)]sync.Pool
}

var framePoolBytes = [...]int{256, 2 << 10, 16 << 10, 128 << 10, 1<<20 + 64<<10}

// get returns a frame with room for body bytes behind the header.
func (p *framePools) get(body int) *frame {
	need := headerBytes + body
	for i, size := range framePoolBytes {
		if need <= size {
			if f, ok := p.pools[i].Get().(*frame); ok {
				f.buf, f.patient = f.buf[:headerBytes], false
				return f
			}
			return &frame{buf: make([]byte, headerBytes, size), pool: int8(i)}
		}
	}
	return &frame{buf: make([]byte, headerBytes, need), pool: -1}
}

func (p *framePools) put(f *frame) {
	if f.pool >= 0 {
		p.pools[f.pool].Put(f)
	}
}

// seal writes the header in front of the body that was appended to f.buf.
func (f *frame) seal(h header) {
	b := f.buf
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	b[8], b[9], b[10], b[11] = frameVersion, byte(h.kind), 0, byte(h.status)
	if h.response {
		b[10] = flagResponse
	}
	binary.LittleEndian.PutUint32(b[12:], h.namespace)
	binary.LittleEndian.PutUint32(b[16:], h.group)
	binary.LittleEndian.PutUint32(b[20:], h.incarnation)
	binary.LittleEndian.PutUint32(b[24:], h.request)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[checkedFrom:], castagnoli))
	f.class = h.class()
}

// frameLength checks the length at the start of b (at least 4 bytes) before
// anything is allocated for it, and returns the whole frame's length.
func frameLength(b []byte, bytesMax int) (int, error) {
	n := int64(binary.LittleEndian.Uint32(b)) + 4
	if n < headerBytes || n > int64(bytesMax) {
		return 0, fmt.Errorf("frame length %d is not in %d..%d: %w", n, headerBytes, bytesMax, ErrTooLarge)
	}
	return int(n), nil
}

// parseHeader reads the fixed part; head has headerBytes bytes.
func parseHeader(head []byte) (header, error) {
	if head[8] != frameVersion {
		return header{}, fmt.Errorf("frame version %d is unknown, this node speaks %d", head[8], frameVersion)
	}
	if head[10]&^flagResponse != 0 {
		return header{}, fmt.Errorf("frame flags %#x are unknown", head[10])
	}
	return header{
		kind:        Kind(head[9]),
		response:    head[10]&flagResponse != 0,
		status:      status(head[11]),
		namespace:   binary.LittleEndian.Uint32(head[12:]),
		group:       binary.LittleEndian.Uint32(head[16:]),
		incarnation: binary.LittleEndian.Uint32(head[20:]),
		request:     binary.LittleEndian.Uint32(head[24:]),
	}, nil
}

// checkFrame verifies the checksum of a frame in one or two pieces.
func checkFrame(head, body []byte) error {
	want := binary.LittleEndian.Uint32(head[4:])
	got := crc32.Update(crc32.Checksum(head[checkedFrom:headerBytes], castagnoli), castagnoli, body)
	if got != want {
		return fmt.Errorf("frame checksum %08x, want %08x", got, want)
	}
	return nil
}
