package mux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Raft's messages by hand: no reflection, no gob, every field of raft v1.8.0.
// A peer's id is in every message up to three times (ID, Addr and the field that
// preceded them); a bit says that it is the one the handshake proved.

// Bits of the first byte of every raft message.
const (
	samePeerID   = 1 << 0 // RPCHeader.ID is the sender's peer id
	samePeerAddr = 1 << 1 // RPCHeader.Addr too
	samePeerOld  = 1 << 2 // Leader or Candidate too
	boolFirst    = 1 << 3 // Success, Granted or LeadershipTransfer
	boolSecond   = 1 << 4 // NoRetryBackoff
)

// Bits of the first byte of a log entry.
const (
	entryExtensions = 1 << 0
	entryAppendedAt = 1 << 1
)

// entryBytesMin is the shortest entry: bits, type, index, term, length.
const entryBytesMin = 5

// rpcHeaderBytesMax bounds what appendRPCHeader adds.
func rpcHeaderBytesMax(h *raft.RPCHeader, old []byte) int {
	return 1 + 4*uvarintBytesMax + len(h.ID) + len(h.Addr) + len(old)
}

func appendRPCHeader(b []byte, bits byte, h *raft.RPCHeader, old, self []byte) []byte {
	fields := [...][]byte{h.ID, h.Addr, old}
	for i, f := range fields {
		if bytes.Equal(f, self) {
			bits |= 1 << i
		}
	}
	b = append(b, bits)
	b = binary.AppendUvarint(b, uint64(h.ProtocolVersion))
	for i, f := range fields {
		if bits&(1<<i) == 0 {
			b = appendBytes(b, f)
		}
	}
	return b
}

func (c *cursor) rpcHeader(h *raft.RPCHeader, peer []byte) (bits byte, old []byte) {
	bits = c.uint8()
	h.ProtocolVersion = raft.ProtocolVersion(c.uvarint())
	fields := [...]*[]byte{&h.ID, &h.Addr, &old}
	for i, f := range fields {
		if bits&(1<<i) != 0 {
			*f = peer
		} else {
			*f = c.bytes()
		}
	}
	return bits, old
}

func bit(b bool, mask byte) byte {
	if b {
		return mask
	}
	return 0
}

// appendEntriesBytesMax bounds the encoding of a.
func appendEntriesBytesMax(a *raft.AppendEntriesRequest) int {
	n := rpcHeaderBytesMax(&a.RPCHeader, a.Leader) + 5*uvarintBytesMax
	for _, e := range a.Entries {
		n += entryBytes(e)
	}
	return n
}

func entryBytes(e *raft.Log) int {
	return 2 + 5*uvarintBytesMax + len(e.Data) + len(e.Extensions)
}

func encodeAppendEntries(b []byte, a *raft.AppendEntriesRequest, self []byte) []byte {
	b = appendRPCHeader(b, 0, &a.RPCHeader, a.Leader, self)
	b = binary.AppendUvarint(b, a.Term)
	b = binary.AppendUvarint(b, a.PrevLogEntry)
	b = binary.AppendUvarint(b, a.PrevLogTerm)
	b = binary.AppendUvarint(b, a.LeaderCommitIndex)
	b = binary.AppendUvarint(b, uint64(len(a.Entries)))
	index := a.PrevLogEntry
	for _, e := range a.Entries {
		bits := bit(len(e.Extensions) > 0, entryExtensions) | bit(!e.AppendedAt.IsZero(), entryAppendedAt)
		b = append(b, bits, byte(e.Type))
		b = binary.AppendUvarint(b, e.Index-index) // 1 as a rule; modulo 2^64 any other too
		b = binary.AppendUvarint(b, a.Term-e.Term)
		if bits&entryAppendedAt != 0 {
			b = binary.AppendVarint(b, e.AppendedAt.UnixNano())
		}
		b = appendBytes(b, e.Data)
		if bits&entryExtensions != 0 {
			b = appendBytes(b, e.Extensions)
		}
		index = e.Index
	}
	return b
}

// decodeAppendEntries reads a request whose entries alias b: raft keeps them in
// its log cache, so b must not be used again.
func decodeAppendEntries(b, peer []byte) (*raft.AppendEntriesRequest, error) {
	c := cursor{b: b}
	a := new(raft.AppendEntriesRequest)
	_, a.Leader = c.rpcHeader(&a.RPCHeader, peer)
	a.Term, a.PrevLogEntry, a.PrevLogTerm, a.LeaderCommitIndex = c.uvarint(), c.uvarint(), c.uvarint(), c.uvarint()
	n := c.uvarint()
	if n > uint64(len(c.b))/entryBytesMin {
		c.fail()
		n = 0
	}
	if n > 0 {
		logs := make([]raft.Log, n)
		a.Entries = make([]*raft.Log, n)
		index := a.PrevLogEntry
		for i := range logs {
			c.entry(&logs[i], index, a.Term)
			index = logs[i].Index
			a.Entries[i] = &logs[i]
		}
	}
	return a, c.end()
}

func (c *cursor) entry(e *raft.Log, index, term uint64) {
	bits := c.uint8()
	e.Type = raft.LogType(c.uint8())
	e.Index = index + c.uvarint()
	e.Term = term - c.uvarint()
	if bits&entryAppendedAt != 0 {
		ns, n := binary.Varint(c.b)
		if n <= 0 {
			c.fail()
			return
		}
		c.b = c.b[n:]
		e.AppendedAt = time.Unix(0, ns)
	}
	e.Data = c.bytes()
	if bits&entryExtensions != 0 {
		e.Extensions = c.bytes()
	}
}

// heartbeat reports whether a is one of raft's pure heartbeats: raft v1.8.0
// sends them from a goroutine of its own with nothing but term and leader.
func heartbeat(a *raft.AppendEntriesRequest) bool {
	return a.Term != 0 && (len(a.Addr) != 0 || len(a.Leader) != 0) && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 &&
		len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

// idle recognises requests that raft sends by the clock when nothing happens:
// heartbeats, and appends without entries, which tell the commit index.
func idle(request any) bool {
	a, ok := request.(*raft.AppendEntriesRequest)
	return ok && len(a.Entries) == 0
}

// encodeRequest appends any raft request to b.
func encodeRequest(b []byte, request any, self []byte) []byte {
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		return encodeAppendEntries(b, r, self)
	case *raft.RequestVoteRequest:
		b = appendRPCHeader(b, bit(r.LeadershipTransfer, boolFirst), &r.RPCHeader, r.Candidate, self)
		b = binary.AppendUvarint(b, r.Term)
		b = binary.AppendUvarint(b, r.LastLogIndex)
		return binary.AppendUvarint(b, r.LastLogTerm)
	case *raft.RequestPreVoteRequest:
		b = appendRPCHeader(b, 0, &r.RPCHeader, nil, self)
		b = binary.AppendUvarint(b, r.Term)
		b = binary.AppendUvarint(b, r.LastLogIndex)
		return binary.AppendUvarint(b, r.LastLogTerm)
	case *raft.TimeoutNowRequest:
		return appendRPCHeader(b, 0, &r.RPCHeader, nil, self)
	case *raft.InstallSnapshotRequest:
		b = appendRPCHeader(b, 0, &r.RPCHeader, r.Leader, self)
		for _, v := range [...]uint64{uint64(r.SnapshotVersion), r.Term, r.LastLogIndex, r.LastLogTerm, r.ConfigurationIndex, uint64(r.Size)} {
			b = binary.AppendUvarint(b, v)
		}
		b = appendBytes(b, r.Peers)
		return appendBytes(b, r.Configuration)
	}
	return b
}

// requestBytesMax bounds what encodeRequest appends.
func requestBytesMax(request any) int {
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		return appendEntriesBytesMax(r)
	case *raft.InstallSnapshotRequest:
		return rpcHeaderBytesMax(&r.RPCHeader, r.Leader) + 8*uvarintBytesMax + len(r.Peers) + len(r.Configuration)
	case *raft.RequestVoteRequest:
		return rpcHeaderBytesMax(&r.RPCHeader, r.Candidate) + 3*uvarintBytesMax
	case raft.WithRPCHeader:
		h := r.GetRPCHeader()
		return rpcHeaderBytesMax(&h, nil) + 3*uvarintBytesMax
	}
	return 0
}

// decodeRequest reads the request of a raft kind. Its byte fields alias b or peer.
func decodeRequest(kind Kind, b, peer []byte) (raft.WithRPCHeader, error) {
	c := cursor{b: b}
	switch kind {
	case kindAppend, kindHeartbeat:
		return decodeAppendEntries(b, peer)
	case kindVote:
		r := new(raft.RequestVoteRequest)
		var bits byte
		bits, r.Candidate = c.rpcHeader(&r.RPCHeader, peer)
		r.LeadershipTransfer = bits&boolFirst != 0
		r.Term, r.LastLogIndex, r.LastLogTerm = c.uvarint(), c.uvarint(), c.uvarint()
		return r, c.end()
	case kindPreVote:
		r := new(raft.RequestPreVoteRequest)
		c.rpcHeader(&r.RPCHeader, peer)
		r.Term, r.LastLogIndex, r.LastLogTerm = c.uvarint(), c.uvarint(), c.uvarint()
		return r, c.end()
	case kindTimeoutNow:
		r := new(raft.TimeoutNowRequest)
		c.rpcHeader(&r.RPCHeader, peer)
		return r, c.end()
	case kindSnapshot:
		r := new(raft.InstallSnapshotRequest)
		_, r.Leader = c.rpcHeader(&r.RPCHeader, peer)
		r.SnapshotVersion = raft.SnapshotVersion(c.uvarint())
		r.Term, r.LastLogIndex, r.LastLogTerm, r.ConfigurationIndex = c.uvarint(), c.uvarint(), c.uvarint(), c.uvarint()
		r.Size = int64(c.uvarint())
		if r.Size < 0 {
			c.fail()
		}
		r.Peers, r.Configuration = c.bytes(), c.bytes()
		return r, c.end()
	}
	return nil, fmt.Errorf("kind %d is no raft request", kind)
}

// encodeResponse appends raft's answer to b.
func encodeResponse(b []byte, response any, self []byte) ([]byte, error) {
	switch r := response.(type) {
	case *raft.AppendEntriesResponse:
		b = appendRPCHeader(b, bit(r.Success, boolFirst)|bit(r.NoRetryBackoff, boolSecond), &r.RPCHeader, nil, self)
		b = binary.AppendUvarint(b, r.Term)
		return binary.AppendUvarint(b, r.LastLog), nil
	case *raft.RequestVoteResponse:
		b = appendRPCHeader(b, bit(r.Granted, boolFirst), &r.RPCHeader, r.Peers, self)
		return binary.AppendUvarint(b, r.Term), nil
	case *raft.RequestPreVoteResponse:
		b = appendRPCHeader(b, bit(r.Granted, boolFirst), &r.RPCHeader, nil, self)
		return binary.AppendUvarint(b, r.Term), nil
	case *raft.TimeoutNowResponse:
		return appendRPCHeader(b, 0, &r.RPCHeader, nil, self), nil
	case *raft.InstallSnapshotResponse:
		b = appendRPCHeader(b, bit(r.Success, boolFirst), &r.RPCHeader, nil, self)
		return binary.AppendUvarint(b, r.Term), nil
	}
	return b, fmt.Errorf("raft answered with %T", response)
}

// decodeResponse fills response from b, which may be reused afterwards.
func decodeResponse(response any, b, peer []byte) error {
	c := cursor{b: b}
	var h raft.RPCHeader
	bits, old := c.rpcHeader(&h, peer)
	if bits&samePeerID == 0 {
		h.ID = bytes.Clone(h.ID)
	}
	if bits&samePeerAddr == 0 {
		h.Addr = bytes.Clone(h.Addr)
	}
	first := bits&boolFirst != 0
	switch r := response.(type) {
	case *raft.AppendEntriesResponse:
		*r = raft.AppendEntriesResponse{RPCHeader: h, Term: c.uvarint(), LastLog: c.uvarint(), Success: first, NoRetryBackoff: bits&boolSecond != 0}
	case *raft.RequestVoteResponse:
		*r = raft.RequestVoteResponse{RPCHeader: h, Term: c.uvarint(), Peers: bytes.Clone(old), Granted: first}
	case *raft.RequestPreVoteResponse:
		*r = raft.RequestPreVoteResponse{RPCHeader: h, Term: c.uvarint(), Granted: first}
	case *raft.TimeoutNowResponse:
		*r = raft.TimeoutNowResponse{RPCHeader: h}
	case *raft.InstallSnapshotResponse:
		*r = raft.InstallSnapshotResponse{RPCHeader: h, Term: c.uvarint(), Success: first}
	default:
		return fmt.Errorf("no decoder for %T", response)
	}
	return c.end()
}
