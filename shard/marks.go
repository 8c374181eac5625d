package shard

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// markBytes is the size of a mark in a snapshot and on disk: the score's bits,
// little-endian, the quality, and a byte of flags.
const markBytes = 4 + 1 + 1

// The flags of a mark.
const (
	markDrop = 1 << 0
	markLate = 1 << 1
)

func appendMarks(b []byte, marks []mark) []byte {
	for _, k := range marks {
		flags := byte(0)
		if k.drop {
			flags |= markDrop
		}
		if k.lane == telemetry.LaneLate {
			flags |= markLate
		}
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(k.score))
		b = append(b, byte(k.quality), flags)
	}
	return b
}

func parseMark(b []byte) mark {
	k := mark{score: math.Float32frombits(binary.LittleEndian.Uint32(b)), quality: telemetry.Quality(b[4]), drop: b[5]&markDrop != 0}
	if b[5]&markLate != 0 {
		k.lane = telemetry.LaneLate
	}
	return k
}

func decodeMarks(r *wire.Reader, n int) []mark {
	out := make([]mark, 0, n)
	for range n {
		b := r.Bytes(markBytes)
		if r.Err() != nil {
			return nil
		}
		out = append(out, parseMark(b))
	}
	return out
}

// marksMax bounds the marks a shard keeps in memory (8 bytes each): half a
// million readings. An hour without a database leaves hundreds of times as many.
const marksMax = 1 << 19

// spillBytesMax is where the next file begins: what is stored frees its disk
// space file by file.
const spillBytesMax = 16 << 20

// spill holds what memory has no room for, such as marks. Its files have no name: they end
// with the process, and a restart computes the marks again from the log. It
// belongs to one goroutine; readers of the files need no lock.
type spill struct {
	dir    string
	shared bool // readers may have a file when nothing is needed of it any more: it is closed when they have all gone
	files  []*spillFile
}

type spillFile struct {
	*os.File
	size int64
	last uint64 // index of the last block in it
}

// write appends the marks of a block.
func (s *spill) write(b *pendingBlock, marks []mark) (f *spillFile, offset int64, err error) {
	return s.append(b.index, appendMarks(nil, marks))
}

// append appends what belongs to the block at an index; indexes ascend.
func (s *spill) append(index uint64, data []byte) (f *spillFile, offset int64, err error) {
	if n := len(s.files); n == 0 || s.files[n-1].size >= spillBytesMax {
		file, err := os.CreateTemp(s.dir, "marks-*.tmp")
		if err != nil {
			return nil, 0, fmt.Errorf("make a file for pending blocks: %w", err)
		}
		s.files = append(s.files, &spillFile{File: file})
		if err := os.Remove(file.Name()); err != nil {
			return nil, 0, fmt.Errorf("unlink the file for pending blocks: %w", err)
		}
	}
	f = s.files[len(s.files)-1]
	offset = f.size
	n, err := f.WriteAt(data, offset)
	if err != nil {
		return nil, 0, fmt.Errorf("write pending blocks: %w", err)
	}
	f.size, f.last = f.size+int64(n), index
	return f, offset, nil
}

// release closes the files of which nothing is needed behind an index.
func (s *spill) release(kept uint64) {
	for len(s.files) > 0 && s.files[0].last <= kept && s.files[0].last > 0 {
		s.done(s.files[0])
		s.files = s.files[1:]
	}
}

func (s *spill) close() {
	for _, f := range s.files {
		s.done(f)
	}
	s.files = nil
}

// done closes a file, or leaves that to the garbage collector.
func (s *spill) done(f *spillFile) {
	if !s.shared {
		_ = f.Close() // it has no name: nothing is left of it
	}
}

// bytes is what the files take on disk.
func (s *spill) bytes() (n int64) {
	for _, f := range s.files {
		n += f.size
	}
	return n
}

// spillMarks moves the oldest marks to disk until memory holds at most marksMax
// of them, and of no more blocks than it should, packs what is left, and moves
// that to disk as well where there is much of it.
// Where that fails they stay where they are.
func (f *flusher) spillMarks() error {
	m := f.shard.fsm.machine
	m.mu.Lock()
	over := m.pending.marks - int(f.marksMax.Load())
	kept := m.pending.kept
	var blocks []*pendingBlock
	for i := m.pending.spilled; (over > 0 || m.pending.surplus(i)) && i < len(m.pending.blocks); i++ {
		b := m.pending.blocks[i]
		blocks = append(blocks, b)
		over -= len(b.marks)
	}
	parked := int64(0)
	if m.parking != nil {
		m.parking.release(kept)
		parked = m.parking.spill.bytes()
	}
	m.mu.Unlock()
	f.spill.release(kept)
	for _, b := range blocks {
		if len(b.marks) == 0 {
			f.spilledOne(b, nil, 0)
			continue
		}
		file, offset, err := f.spill.write(b, b.marks) // marks are written by apply only before it adds the block
		if err != nil {
			return err
		}
		f.spilledOne(b, file, offset)
	}
	m.mu.Lock()
	m.pending.pack()
	runs := m.pending.heavy()
	m.mu.Unlock()
	f.books.release(kept)
	for _, r := range runs {
		light := r // what is not packed stays
		if r.plain == nil {
			book, at, err := f.books.append(r.last, r.packed)
			if err != nil {
				return err
			}
			light = r.onDisk(book, at)
		}
		m.mu.Lock()
		m.pending.lighten(r, light)
		m.mu.Unlock()
	}
	f.spillBytes.Store(f.spill.bytes() + f.books.bytes() + parked)
	return nil
}

// spilledOne takes the marks of the next block out of memory, unless the block
// has gone meanwhile.
func (f *flusher) spilledOne(b *pendingBlock, file *spillFile, offset int64) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &m.pending
	if p.spilled >= len(p.blocks) || p.blocks[p.spilled] != b {
		return
	}
	p.spilled++
	p.marks -= len(b.marks)
	if file != nil {
		b.marks, b.spilled, b.offset = nil, file, offset
	}
}

// blockMarks returns the marks of a pending block, from memory or from disk.
func (f *fsm) blockMarks(b *pendingBlock) ([]mark, error) {
	f.mu.Lock()
	marks, file, offset := b.marks, b.spilled, b.offset
	f.mu.Unlock()
	if marks != nil || file == nil {
		return marks, nil
	}
	buf := make([]byte, b.readings*markBytes)
	if _, err := file.ReadAt(buf, offset); err != nil {
		return nil, fmt.Errorf("read the marks of block %d: %w", b.index, err)
	}
	marks = make([]mark, 0, b.readings)
	for ; len(buf) > 0; buf = buf[markBytes:] {
		marks = append(marks, parseMark(buf))
	}
	return marks, nil
}
