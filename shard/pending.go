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

// What all shards of a node keep in memory of what waits for the store, within
// the bounds of each: many shards must not take many times as much.
const (
	nodeDataBytesMax = 64 << 20
	nodeMarksMax     = 1 << 21 // 16 MiB
	shardDataBytes   = 1 << 20 // and what each may keep in any case
	shardMarks       = 1 << 15
)

// shareMemory gives the shard its part of the node's memory.
func (s *Shard) shareMemory(shards int) {
	m := s.fsm.machine
	m.mu.Lock()
	m.pending.dataMax = min(pendingDataBytesMax, max(shardDataBytes, nodeDataBytesMax/max(1, shards)))
	if n := max(shardBlocks, nodeBlocksMax/max(1, shards)); m.pending.blocksMax == 0 || n < m.pending.blocksMax {
		m.pending.blocksMax = n
	}
	m.mu.Unlock()
	if n := int64(max(shardMarks, nodeMarksMax/max(1, shards))); n < s.flush.marksMax.Load() {
		s.flush.marksMax.Store(n)
	}
}

// errFlushStale answers a flush decision that does not begin at the watermark:
// two leaders decided, the first one won.
var errFlushStale = errors.New("flush does not begin at the watermark")

// lateAfter is how much earlier than its receipt a reading was measured when it
// takes the late lane. It is part of what the log means: every replica decides
// alike.
const lateAfter = 10 * 60 * 1_000_000 // microseconds

// mark is what apply decided about one reading of a block.
type mark struct {
	score   float32
	quality telemetry.Quality
	drop    bool // a repeat: never flushed, never shown
	lane    telemetry.Lane
}

// pendingBlock is an applied block that the store does not hold yet, or that is
// kept for a database that might lose it again.
type pendingBlock struct {
	index, term uint64
	data        []byte                  // nil: read it from the log, unless there are no rows
	pinned      bool                    // came with a snapshot: the log may not have it
	messages    [telemetry.Lanes]uint32 // applied
	rows        [telemetry.Lanes]uint32 // readings that become rows
	marks       []mark                  // one per reading of the block, in its order; nil: see spilled
	spilled     *spillFile
	offset      int64      // of the marks in spilled
	readings    int        // marks that are there
	parked      *spillFile // data of a pinned block that memory had no room for
	at          int64      // ... and where it is there
	size        int
}

// allRows counts the rows of both lanes.
func (p *pendingBlock) allRows() int {
	return int(p.rows[telemetry.LaneLive]) + int(p.rows[telemetry.LaneLate])
}

func (p *pendingBlock) allMessages() uint64 {
	return uint64(p.messages[telemetry.LaneLive]) + uint64(p.messages[telemetry.LaneLate])
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
// Invariants: durable <= what the live lane has stored without a gap <= its
// watermark <= index of the last entry applied; nothing up to durable waits in
// either lane; blocks are ascending, all
// above kept, and kept <= durable; the decided ranges are contiguous and end at
// the watermarks. In the embedded store both lanes have one watermark; in a
// database each has its own, and that of the late lane stands where its last
// batch ended, however far the log has gone on without late rows.
type pending struct {
	durable    uint64               // the store this replica reads from holds everything up to here
	watermarks telemetry.Watermarks // replicated: decided (embedded) or committed (shared database)
	cold       []*run               // the oldest blocks
	booked     int                  // leading runs of cold that memory has nothing more of to give to a file
	blocks     []*pendingBlock
	decided    []*flushRange
	rows       [telemetry.Lanes]uint64 // of blocks above the lane's watermark
	gapRows    uint64                  // of the live lane in its gap
	newestLate uint64                  // index of the newest block with late rows
	dataBytes  int                     // of blocks with data that is not pinned
	dataMax    int                     // bound of dataBytes; 0: pendingDataBytesMax
	blocksMax  int                     // how many blocks may wait before the oldest are packed; 0: nodeBlocksMax
	pinned     uint64                  // index of the newest block that came with a snapshot
	forgotten  int                     // leading blocks whose data went back to the log
	marks      int                     // in memory
	spilled    int                     // leading blocks whose marks are on disk
	retain     bool                    // blocks stay until trim, not only until they are stored
	kept       uint64                  // every block behind it is in blocks
}

func (p *pending) add(b *pendingBlock) {
	p.blocks = append(p.blocks, b)
	p.count(b)
	p.keep(b)
}

func (p *pending) count(b *pendingBlock) {
	for lane, n := range b.rows {
		if b.index > p.watermarks.To[lane] {
			p.rows[lane] += uint64(n)
		}
	}
	if p.watermarks.Gap.Holds(b.index) {
		p.gapRows += uint64(b.rows[telemetry.LaneLive])
	}
	if b.rows[telemetry.LaneLate] > 0 {
		p.newestLate = b.index
	}
}

// waiting counts the rows of both lanes of the embedded store, which leaves no gap.
func (p *pending) waiting() uint64 { return p.rows[telemetry.LaneLive] + p.rows[telemetry.LaneLate] }

// keep accounts for the data of the newest block and lets the oldest go.
func (p *pending) keep(b *pendingBlock) {
	if b.allRows() == 0 {
		b.data, b.marks = nil, nil // nobody will ever look
	}
	if b.marks != nil {
		b.readings = len(b.marks)
	}
	p.marks += len(b.marks)
	if b.pinned {
		p.pinned = b.index
		return
	}
	p.dataBytes += len(b.data)
	most := p.dataMax
	if most == 0 {
		most = pendingDataBytesMax
	}
	for (p.dataBytes > most || p.surplus(p.forgotten)) && p.forgotten < len(p.blocks) {
		if old := p.blocks[p.forgotten]; !old.pinned {
			p.dataBytes -= len(old.data)
			old.data = nil
		}
		p.forgotten++
	}
}

// surplus reports whether more blocks wait than memory should have, and block i
// is one of the oldest, that give way.
func (p *pending) surplus(i int) bool {
	most := p.blocksMax
	if most == 0 {
		most = nodeBlocksMax
	}
	return i < len(p.blocks)-most && len(p.blocks)-p.after(p.durable) > most
}

// restoreBlock adds a block of a snapshot; only those above a lane's watermark
// count towards its next flush.
func (p *pending) restoreBlock(b *pendingBlock) error {
	if b.index <= max(p.durable, p.newest()) {
		return fmt.Errorf("pending block %d is out of order", b.index)
	}
	p.add(b)
	if len(p.blocks)%runBlocks == 0 {
		p.pack()
	}
	return nil
}

// newest is the index of the newest block, 0 without one.
func (p *pending) newest() uint64 {
	if n := len(p.blocks); n > 0 {
		return p.blocks[n-1].index
	}
	if n := len(p.cold); n > 0 {
		return p.cold[n-1].last
	}
	return 0
}

// last is the index of the newest pending block, or the live watermark.
func (p *pending) last() uint64 {
	return max(p.newest(), p.watermarks.To[telemetry.LaneLive])
}

// after is the position in blocks of the first one with an index above i.
func (p *pending) after(i uint64) int {
	n, _ := slices.BinarySearchFunc(p.blocks, i, func(b *pendingBlock, i uint64) int {
		if b.index <= i {
			return -1
		}
		return 1
	})
	return n
}

// decide takes both lanes of a range to the embedded store.
func (p *pending) decide(from, to uint64) error {
	if w := p.watermarks.To[telemetry.LaneLive]; from != w || to <= from || p.watermarks.Gap.Open() {
		return fmt.Errorf("%w: from %d to %d, watermark %d", errFlushStale, from, to, w)
	}
	f := &flushRange{from: from, to: to}
	for b := range p.between(from, to).all() {
		f.messages += b.allMessages()
		for lane, n := range b.rows {
			p.rows[lane] -= uint64(n)
		}
	}
	p.watermarks.To = [telemetry.Lanes]uint64{to, to}
	p.decided = append(p.decided, f)
	return nil
}

// stored drops what the local store holds durably. It is called by the flusher.
func (p *pending) stored(to uint64) {
	for len(p.decided) > 0 && p.decided[0].to <= to {
		p.decided = p.decided[1:]
	}
	p.settled(to)
}

// complete is up to where neither lane has anything to flush.
func (p *pending) complete() uint64 {
	live, late := p.watermarks.Low(), p.watermarks.To[telemetry.LaneLate]
	for b := range p.between(max(p.durable, late), live).all() {
		if b.rows[telemetry.LaneLate] > 0 {
			return b.index - 1
		}
	}
	return live
}

// settled notes what is stored for good. What came with a snapshot goes at once:
// it is not in the log, and would stay in memory.
func (p *pending) settled(to uint64) {
	p.durable = max(p.durable, to)
	if !p.retain {
		p.trim(p.durable)
		return
	}
	p.trim(min(p.pinned, p.durable)) // those of a snapshot come before all others
}

// trim lets go of stored blocks up to an index.
func (p *pending) trim(to uint64) {
	to = min(to, p.durable)
	if to <= p.kept {
		return
	}
	p.kept = to
	n := p.after(to)
	for _, b := range p.blocks[:n] {
		if !b.pinned {
			p.dataBytes -= len(b.data)
		}
		p.marks -= len(b.marks)
	}
	p.shift(n)
	gone := 0
	for gone < len(p.cold) && p.cold[gone].last <= to {
		gone++
	}
	p.cold, p.booked = slices.Delete(p.cold, 0, gone), max(0, p.booked-gone)
}

// head is the part that append writes, as it is now: a decided range does not
// change any more.
func (p *pending) head() pending {
	return pending{durable: p.durable, watermarks: p.watermarks, decided: slices.Clone(p.decided)}
}

// append writes everything but the blocks, which the snapshot streams.
func (p *pending) append(b []byte) []byte {
	b = wire.AppendUint(b, p.durable)
	for _, w := range p.watermarks.To {
		b = wire.AppendUint(b, w)
	}
	b = wire.AppendUint(wire.AppendUint(b, p.watermarks.Gap.From), p.watermarks.Gap.To)
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
	*p = pending{durable: r.Uint(), watermarks: telemetry.Watermarks{
		To: [telemetry.Lanes]uint64{r.Uint(), r.Uint()}, Gap: telemetry.Gap{From: r.Uint(), To: r.Uint()},
	}, retain: p.retain}
	p.kept = p.durable
	from, live, gap := p.durable, p.watermarks.To[telemetry.LaneLive], p.watermarks.Gap
	for range r.Count(21) {
		f := &flushRange{from: from, to: r.Uint(), messages: r.Uint(), updates: decodeUpdates(r), anomalies: decodeAnomalies(r), compareTo: r.Uint()}
		copy(f.compare[:], r.Bytes(len(f.compare)))
		if f.to <= from {
			return fmt.Errorf("decided flush ends at %d, the one before it at %d", f.to, from)
		}
		p.decided = append(p.decided, f)
		from = f.to
	}
	switch {
	case r.Err() != nil:
		return r.Err()
	case len(p.decided) > 0 && from != live:
		return fmt.Errorf("decided flushes end at %d, the watermark is %d", from, live)
	case gap != (telemetry.Gap{}) && (!gap.Open() || gap.To >= live || len(p.decided) > 0):
		return fmt.Errorf("gap from %d to %d, the watermark is %d", gap.From, gap.To, live)
	case p.durable > p.watermarks.Low():
		return fmt.Errorf("stored up to %d, the watermark is %d", p.durable, p.watermarks.Low())
	}
	return nil
}

// append writes one pending block with its data and marks.
func (p *pendingBlock) append(b, data []byte, marks []mark) []byte {
	b = wire.AppendUint(b, p.index)
	b = wire.AppendUint(b, p.term)
	for _, n := range p.messages {
		b = wire.AppendUint(b, uint64(n))
	}
	b = wire.AppendString(b, data)
	b = wire.AppendUint(b, uint64(len(marks)))
	return appendMarks(b, marks)
}

func decodePendingBlock(r *wire.Reader) *pendingBlock {
	p := &pendingBlock{index: r.Uint(), term: r.Uint(), messages: [telemetry.Lanes]uint32{uint32(r.Uint()), uint32(r.Uint())}, data: slices.Clone(r.Blob())}
	p.marks = decodeMarks(r, r.Count(markBytes))
	for _, k := range p.marks {
		if !k.drop {
			p.rows[k.lane]++
		}
	}
	return p
}

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
