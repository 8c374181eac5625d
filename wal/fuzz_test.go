package wal

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/vfs"
)

var fuzzKey = newSegmentKey([16]byte{1}, 1)

// FuzzRecord decodes arbitrary bytes: no panic, and what decodes encodes to the
// same bytes.
func FuzzRecord(f *testing.F) {
	for _, r := range []record{
		{typ: typeEntry, group: 1, index: 2, term: 3, body: []byte("data")},
		{typ: typeRelocated, group: 1, index: 2, body: make([]byte, originBytes+3)},
		{typ: typeStable, body: stableBody([]byte("k"), []byte("v"))},
		{typ: typeCheckpoint, body: appendImage([]byte{1, 0, 0, 0}, &groupImage{id: 1, stable: map[string][]byte{"k": {1}}})},
		{typ: typePrefix, body: floorBody(9)},
	} {
		f.Add(appendRecord(nil, fuzzKey, &r)[:r.headerSize()+len(r.body)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Make the checksum right, or the fuzzer never gets behind it.
		if len(b) >= recordHeaderMin {
			b = bytes.Clone(b)
			b[0], b[1], b[2], b[3] = byte(fuzzKey), byte(fuzzKey>>8), byte(fuzzKey>>16), byte(fuzzKey>>24)
			n := len(b)
			b[8], b[9], b[10], b[11] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
			b = sealRecord(b, 0, fuzzKey)[:n]
		}
		r, err := decodeRecord(b, fuzzKey)
		if err != nil {
			return
		}
		if again := appendRecord(nil, fuzzKey, &r)[:len(b)]; !bytes.Equal(again, b) {
			t.Fatalf("decoded %+v, encodes to other bytes", r)
		}
		var l raft.Log
		_ = readEntry(&r, &l)
		_ = checkOrigin(&r, [16]byte{1})
		_ = r.describe(true)
		g := newGroup(1, nil)
		_ = g.apply(&r, location{1, 2, 3}, func(uint32, int64) {})
		if _, err := readCheckpoint(r.body); err == nil && r.typ == typeCheckpoint {
			_ = r.describe(false)
		}
	})
}

// FuzzHeader decodes arbitrary segment headers.
func FuzzHeader(f *testing.F) {
	h := segmentHeader{seq: 1, bytes: 8192, node: "n0.5f3a9c1e", cluster: "c"}
	f.Add(h.encode()[16:80])
	f.Fuzz(func(t *testing.T, fields []byte) {
		b := h.encode()
		copy(b[12:headerUsed-4], fields)
		binary.LittleEndian.PutUint32(b[headerUsed-4:], crc32.Checksum(b[:headerUsed-4], castagnoli))
		h, err := decodeHeader(b)
		if err != nil {
			return
		}
		if again, err := decodeHeader(h.encode()); err != nil || again != h {
			t.Fatalf("header %+v becomes %+v, %v", h, again, err)
		}
	})
}

// FuzzOpen opens a log with arbitrary bytes behind its header: it is refused, cut
// or read, and what it then says stays the same after a restart.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add([]byte("rubbish"), uint16(0))
	f.Add(make([]byte, 100), uint16(30))
	base := vfs.NewMem()
	cfg := memConfig(base)
	cfg.SegmentBytes = segmentBytesMin
	l := mustOpen(f, cfg)
	mustStore(f, l.Group(1), entries(1, 1, 5, 1, 200))
	mustClose(f, l)
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		disk := base.Clone()
		_ = disk.Mutate("wal/"+segmentName(1), func(file []byte) []byte {
			copy(file[headerBytes+int(at)%headerBytes:], b)
			return file
		})
		cfg := cfg
		cfg.FS = disk
		l, err := Open(quiet, nil, cfg)
		if err != nil {
			return
		}
		last, _ := l.Group(1).LastIndex()
		mustClose(t, l)
		l = mustOpen(t, cfg)
		if again, _ := l.Group(1).LastIndex(); again != last {
			t.Fatalf("the log ended at %d and ends at %d after a restart", last, again)
		}
		mustClose(t, l)
	})
}
