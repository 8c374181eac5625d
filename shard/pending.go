package shard

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// pendingDataBytesMax bounds the block bytes a shard keeps in memory for its
// next flush. What is beyond it is read back from the log, so that a database
// that is away for hours costs disk and a few bytes per reading, not memory.
const pendingDataBytesMax = 8 << 20

// errFlushStale answers a flush decision that does not begin at the watermark:
// two leaders decided, the first one won.
var errFlushStale = errors.New("flush does not begin at the watermark")

// mark is what apply decided about one reading of a block.
type mark struct {
	score   float32
	quality telemetry.Quality
	drop    bool // a repeat: never flushed, never shown
}

// pendingBlock is an applied block that the store does not hold yet.
type pendingBlock struct {
	index, term uint64
	data        []byte // nil: read it from the log, unless rows is 0
	pinned      bool   // came with a snapshot: the log may not have it
	messages    uint32 // applied
	rows        uint32 // readings that become rows
	marks       []mark // one per reading of the block, in its order
}

// dropAll marks every reading of a message as a repeat.
func (p *pendingBlock) dropAll(e *block.Entry) {
	for i := e.Readings.From; i < e.Readings.To; i++ {
		p.marks[i].drop = true
	}
}

// flushRange is a decided flush: (from, to] is written by every replica.
type flushRange struct {
	from, to  uint64
	messages  uint64
	updates   []telemetry.DeviceUpdate
	anomalies []telemetry.Anomaly
	compareTo uint64 // the leader's last written range ends here ...
	compare   [16]byte
}

// pending is the part of the log between what is stored and what is applied.
//
// Invariants: durable <= watermark <= index of the last entry applied; blocks
// are ascending and all above durable; the decided ranges are contiguous and
// end at watermark.
type pending struct {
	durable   uint64 // the store this replica reads from holds everything up to here
	watermark uint64 // replicated: decided (embedded) or committed (shared database)
	blocks    []*pendingBlock
	decided   []*flushRange
	rows      uint64 // of blocks above watermark
	dataBytes int    // of blocks with data that is not pinned
	forgotten int    // leading blocks whose data went back to the log
}

func (p *pending) add(b *pendingBlock) {
	p.blocks = append(p.blocks, b)
	p.rows += uint64(b.rows)
	p.keep(b)
}

// keep accounts for the data of the newest block and lets the oldest go.
func (p *pending) keep(b *pendingBlock) {
	if b.rows == 0 {
		b.data, b.marks = nil, nil // nobody will ever look
	}
	if b.pinned {
		return
	}
	p.dataBytes += len(b.data)
	for p.dataBytes > pendingDataBytesMax && p.forgotten < len(p.blocks) {
		if old := p.blocks[p.forgotten]; !old.pinned {
			p.dataBytes -= len(old.data)
			old.data = nil
		}
		p.forgotten++
	}
}

// restoreBlock adds a block of a snapshot; only those above the watermark count
// towards the next flush.
func (p *pending) restoreBlock(b *pendingBlock) error {
	if b.index <= p.durable || len(p.blocks) > 0 && b.index <= p.blocks[len(p.blocks)-1].index {
		return fmt.Errorf("pending block %d is out of order", b.index)
	}
	p.blocks = append(p.blocks, b)
	if b.index > p.watermark {
		p.rows += uint64(b.rows)
	}
	p.keep(b)
	return nil
}

// last is the index of the newest pending block, or the watermark.
func (p *pending) last() uint64 {
	if n := len(p.blocks); n > 0 {
		return max(p.blocks[n-1].index, p.watermark)
	}
	return p.watermark
}

// between returns the blocks with from < index <= to.
func (p *pending) between(from, to uint64) []*pendingBlock {
	return p.blocks[p.after(from):p.after(to)]
}

// after is the position of the first block with an index above i.
func (p *pending) after(i uint64) int {
	n, _ := slices.BinarySearchFunc(p.blocks, i, func(b *pendingBlock, i uint64) int {
		if b.index <= i {
			return -1
		}
		return 1
	})
	return n
}

func (p *pending) decide(from, to uint64) error {
	if from != p.watermark || to <= from {
		return fmt.Errorf("%w: from %d to %d, watermark %d", errFlushStale, from, to, p.watermark)
	}
	f := &flushRange{from: from, to: to}
	for _, b := range p.between(from, to) {
		f.messages += uint64(b.messages)
		p.rows -= uint64(b.rows)
	}
	p.watermark = to
	p.decided = append(p.decided, f)
	return nil
}

// stored drops what the local store holds durably. It is called by the flusher.
func (p *pending) stored(to uint64) {
	for len(p.decided) > 0 && p.decided[0].to <= to {
		p.decided = p.decided[1:]
	}
	p.release(to)
	p.durable = max(p.durable, to)
}

// flushed moves the watermark to what the shared database has committed and
// returns the messages this adds.
func (p *pending) flushed(to uint64) (messages uint64, err error) {
	if to <= p.watermark {
		return 0, nil
	}
	for _, b := range p.between(p.watermark, to) {
		messages += uint64(b.messages)
		p.rows -= uint64(b.rows)
	}
	p.watermark = to
	p.stored(to)
	return messages, nil
}

func (p *pending) release(to uint64) {
	n := p.after(to)
	for _, b := range p.blocks[:n] {
		if !b.pinned {
			p.dataBytes -= len(b.data)
		}
	}
	p.forgotten = max(0, p.forgotten-n)
	p.blocks = slices.Delete(p.blocks, 0, n)
}

// head is the part that append writes, as it is now: a decided range does not
// change any more.
func (p *pending) head() pending {
	return pending{durable: p.durable, watermark: p.watermark, decided: slices.Clone(p.decided)}
}

// append writes everything but the blocks, which the snapshot streams.
func (p *pending) append(b []byte) []byte {
	b = wire.AppendUint(b, p.durable)
	b = wire.AppendUint(b, p.watermark)
	b = wire.AppendUint(b, uint64(len(p.decided)))
	for _, f := range p.decided {
		b = wire.AppendUint(b, f.to)
		b = wire.AppendUint(b, f.messages)
		b = appendUpdates(b, f.updates)
		b = appendAnomalies(b, f.anomalies)
		b = wire.AppendUint(b, f.compareTo)
		b = append(b, f.compare[:]...)
	}
	return b
}

func (p *pending) decode(r *wire.Reader) error {
	*p = pending{durable: r.Uint(), watermark: r.Uint()}
	from := p.durable
	for range r.Count(21) {
		f := &flushRange{from: from, to: r.Uint(), messages: r.Uint(), updates: decodeUpdates(r), anomalies: decodeAnomalies(r), compareTo: r.Uint()}
		copy(f.compare[:], r.Bytes(len(f.compare)))
		if f.to <= from {
			return fmt.Errorf("decided flush ends at %d, the one before it at %d", f.to, from)
		}
		p.decided = append(p.decided, f)
		from = f.to
	}
	if r.Err() == nil && from != p.watermark {
		return fmt.Errorf("decided flushes end at %d, the watermark is %d", from, p.watermark)
	}
	return r.Err()
}

// appendBlock writes one pending block with its data.
func (p *pendingBlock) append(b, data []byte) []byte {
	b = wire.AppendUint(b, p.index)
	b = wire.AppendUint(b, p.term)
	b = wire.AppendUint(b, uint64(p.messages))
	b = wire.AppendString(b, data)
	b = wire.AppendUint(b, uint64(len(p.marks)))
	for _, k := range p.marks {
		b = wire.AppendFloat(b, float64(k.score))
		b = append(b, byte(k.quality))
		b = wire.AppendBool(b, k.drop)
	}
	return b
}

func decodePendingBlock(r *wire.Reader) *pendingBlock {
	p := &pendingBlock{index: r.Uint(), term: r.Uint(), messages: uint32(r.Uint()), data: slices.Clone(r.Blob())}
	n := r.Count(markBytes)
	p.marks = make([]mark, 0, n)
	for range n {
		k := mark{score: float32(r.Float()), quality: telemetry.Quality(r.Byte()), drop: r.Bool()}
		if !k.drop {
			p.rows++
		}
		p.marks = append(p.marks, k)
	}
	return p
}

// markBytes is the size of a mark in a snapshot.
const markBytes = 8 + 1 + 1

func sortUpdates(u []telemetry.DeviceUpdate) {
	slices.SortFunc(u, func(a, b telemetry.DeviceUpdate) int { return strings.Compare(a.Device, b.Device) })
}

func appendUpdates(b []byte, us []telemetry.DeviceUpdate) []byte {
	b = wire.AppendUint(b, uint64(len(us)))
	for i := range us {
		b = wire.AppendString(b, us[i].Device)
		b = wire.AppendInt(b, us[i].FirstSeen)
		b = wire.AppendInt(b, us[i].LastSeen)
		b = wire.AppendUint(b, uint64(len(us[i].Attributes)))
		for _, a := range us[i].Attributes {
			b = wire.AppendString(b, a.Key)
			b = wire.AppendString(b, a.Value)
		}
	}
	return b
}

func decodeUpdates(r *wire.Reader) []telemetry.DeviceUpdate {
	var us []telemetry.DeviceUpdate
	for range r.Count(4) {
		u := telemetry.DeviceUpdate{Device: r.String(), FirstSeen: r.Int(), LastSeen: r.Int()}
		for range r.Count(2) {
			u.Attributes = append(u.Attributes, telemetry.Attribute{Key: r.String(), Value: r.String()})
		}
		us = append(us, u)
	}
	return us
}
