package shard

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/snapfile"
	"github.com/sluice-iot/sluice/internal/wire"
)

// A snapshot is: magic, then, compressed, sections of length and bytes: those of
// the state, the bookkeeping of the pending part, every pending block, and an
// empty section.
const snapshotMagic = "SLSNAP\x00\x05"

// sectionBytesMax bounds one section; the changes of four decided flushes of a
// shard with millions of devices stay below it.
const sectionBytesMax = 4 << 30

// Snapshot implements raft.FSM: it takes a view of the state, for which the
// shard stops for about a millisecond, and leaves the encoding to Persist.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &snapshot{
		state:   f.view(),
		pending: f.pending.head(),
		blocks:  f.pending.between(f.pending.durable, math.MaxUint64).clone(),
		fsm:     f,
	}, nil
}

type snapshot struct {
	state   *stateView
	pending pending    // without its blocks
	blocks  blockRange // immutable but for data, which mu guards
	fsm     *fsm
}

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	err := s.write(sink)
	if err != nil {
		// The error of a cancelled sink says nothing that err does not.
		_ = sink.Cancel()
		return fmt.Errorf("write snapshot of shard %d: %w", s.fsm.shard, err)
	}
	return sink.Close()
}

func (s *snapshot) write(w io.Writer) error {
	out := &countingWriter{w: w}
	if _, err := io.WriteString(out, snapshotMagic); err != nil {
		return err
	}
	z, err := newPacker(out)
	if err != nil {
		return err
	}
	behindState := func() error {
		err := z.Flush() // so that what is packed can be counted
		s.fsm.sizes.state.Store(out.n)
		return err
	}
	if err := s.writeSections(z, behindState); err != nil {
		return err
	}
	return z.Close()
}

// writeSections writes what is in a snapshot; behindState is called between the
// state and the pending blocks.
func (s *snapshot) writeSections(w io.Writer, behindState func() error) error {
	if err := s.state.write(w); err != nil {
		return err
	}
	if err := writeSection(w, s.pending.append(nil)); err != nil {
		return err
	}
	if err := behindState(); err != nil {
		return err
	}
	var buf []byte
	for b := range s.blocks.all() {
		data, err := s.fsm.blockData(b)
		if err != nil {
			return err
		}
		marks, err := s.fsm.blockMarks(b)
		if err != nil {
			return err
		}
		buf = b.append(buf[:0], data, marks)
		if err := writeSection(w, buf); err != nil {
			return err
		}
	}
	return writeSection(w, nil)
}

// Release implements raft.FSMSnapshot; raft calls it once, after Persist.
func (s *snapshot) Release() { s.state.release() }

// readSection reads one section. Memory grows with what arrives, not with what
// the length promises.
func readSection(r io.Reader) ([]byte, error) {
	var n [8]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint64(n[:])
	if size > sectionBytesMax {
		return nil, fmt.Errorf("section of %d bytes is over the bound of %d", size, sectionBytesMax)
	}
	var b bytes.Buffer
	b.Grow(int(min(size, 1<<20)))
	if _, err := io.CopyN(&b, r, int64(size)); err != nil {
		return nil, fmt.Errorf("section of %d bytes ends after %d: %w", size, b.Len(), err)
	}
	return b.Bytes(), nil
}

// snapshotStore notes when the first snapshot is made: what is restored before
// that is the one that raft starts from, our own or one whose installation a
// crash has cut short; a leader's is made here before it is restored.
type snapshotStore struct {
	*snapfile.Store
	fsm *fsm
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, configurationIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	s.fsm.started.Store(true)
	return s.Store.Create(version, index, term, c, configurationIndex, t)
}

// dropReplaced finishes an installation that a crash has cut short between the
// snapshot and the log: raft empties the log once the snapshot is restored, and
// could append nothing behind a log that ends before its snapshot.
func dropReplaced(log Log, files *raft.FileSnapshotStore) error {
	snaps, err := files.List()
	if err != nil || len(snaps) == 0 {
		return err
	}
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil || last == 0 || last >= snaps[0].Index {
		return err
	}
	_, rc, err := files.Open(snaps[0].ID) // verifies its checksum
	if err != nil {
		return fmt.Errorf("open snapshot %s, which is newer than the log: %w", snaps[0].ID, err)
	}
	return errors.Join(rc.Close(), log.DeleteRange(first, last))
}

// Restore implements raft.FSM.
func (f *fsm) Restore(rc io.ReadCloser) error {
	defer func() { _ = rc.Close() }() // read to its end; nothing depends on Close
	fresh := newMachine(f.shard, f.usual)
	fresh.pending.retain = f.pending.retain
	if f.dir != "" {
		fresh.parking = newParking(f.dir, parkAbove)
	}
	err := f.replace(fresh, rc)
	if err != nil && fresh.parking != nil {
		fresh.parking.close()
	}
	return err
}

// replace restores a snapshot to a fresh machine and puts that in the place of
// the one that runs.
func (f *fsm) replace(fresh *machine, rc io.Reader) error {
	in, state := &countingReader{r: rc}, int64(0)
	if err := fresh.restore(bufio.NewReaderSize(in, 64<<10), f.inLog, func() { state = in.n }); err != nil {
		return fmt.Errorf("restore snapshot of shard %d: %w", f.shard, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.machine
	if fresh.index < m.index {
		return fmt.Errorf("restore snapshot of shard %d: it ends at entry %d, but %d is applied here already", f.shard, fresh.index, m.index)
	}
	m.index, m.term, m.now, m.counts = fresh.index, fresh.term, fresh.now, fresh.counts
	m.origins, m.dups, m.registry = fresh.origins, fresh.dups, fresh.registry
	m.quarantine, m.alerts, m.pending = fresh.quarantine, fresh.alerts, fresh.pending
	m.touched, m.puts, m.sessions = fresh.touched, fresh.puts, fresh.sessions
	m.target, m.detector, m.waves = fresh.target, fresh.detector, fresh.waves
	m.ranges, m.outbox = fresh.ranges, fresh.outbox
	if m.parking != nil {
		m.parking.close() // whoever still reads there fails and tries again with what is here now
	}
	m.parking = fresh.parking
	f.sizes.state.Store(state)
	f.sizes.whole.Store(in.n)
	f.restored(m.index)
	return nil
}

// closeParking comes when nobody reads pending blocks any more.
func (f *fsm) closeParking() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.parking != nil {
		f.parking.close()
	}
}

// inLog tells from which index on this replica's log holds, for certain, the
// entries that a snapshot ending at (index, term) replaces. That is known only
// while raft starts: a snapshot that a leader sends makes raft empty the log.
func (f *fsm) inLog(index, term uint64) (first uint64, ok bool) {
	if f.started.Load() {
		return 0, false
	}
	var l raft.Log
	// The entry at index being the same means that all before it are: the log
	// matching property.
	if err := f.logs.GetLog(index, &l); err != nil || l.Term != term {
		return 0, false
	}
	first, err := f.logs.FirstIndex()
	return first, err == nil && first > 0
}

// logRange tells what the log holds, see inLog.
type logRange func(index, term uint64) (first uint64, ok bool)

// restore reads a snapshot; behindState is called between the state and the
// pending blocks.
func (m *machine) restore(r io.Reader, inLog logRange, behindState func()) error {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return fmt.Errorf("read magic: %w", err)
	}
	if string(magic) != snapshotMagic {
		return fmt.Errorf("not a shard snapshot of this version: it begins with %q", magic)
	}
	z, err := newUnpacker(r)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer z.Close()
	if err := m.restoreSections(z, inLog, behindState); err != nil {
		return err
	}
	return atEnd(z)
}

// restoreSections reads what writeSections has written.
func (m *machine) restoreSections(r io.Reader, inLog logRange, behindState func()) error {
	if err := m.decodeState(r); err != nil {
		return err
	}
	head, err := readSection(r)
	if err != nil {
		return fmt.Errorf("read pending part: %w", err)
	}
	if err := m.pending.decode(wire.NewReader(head)); err != nil {
		return fmt.Errorf("decode pending part: %w", err)
	}
	behindState()
	first, logged := inLog(m.index, m.term)
	for {
		sec, err := readSection(r)
		if err != nil {
			return fmt.Errorf("read pending block: %w", err)
		}
		if len(sec) == 0 {
			return nil
		}
		wr := wire.NewReader(sec)
		b := decodePendingBlock(wr)
		if wr.Err() != nil {
			return fmt.Errorf("decode pending block: %w", wr.Err())
		}
		b.pinned = !logged || b.index < first
		if m.parking != nil {
			if err := m.parking.put(b); err != nil {
				return err
			}
		}
		if err := m.pending.restoreBlock(b); err != nil {
			return err
		}
	}
}

// blockData returns the bytes of a pending block, from memory or from the log;
// none for a block without rows.
func (f *fsm) blockData(b *pendingBlock) ([]byte, error) {
	f.mu.Lock()
	data, parked, at, size := b.data, b.parked, b.at, b.size
	f.mu.Unlock()
	if data != nil || b.allRows() == 0 {
		return data, nil
	}
	if parked != nil {
		return readParked(parked, at, size, b.index)
	}
	var l raft.Log
	if err := f.logs.GetLog(b.index, &l); err != nil {
		return nil, fmt.Errorf("read pending block %d from the log: %w", b.index, err)
	}
	if l.Term != b.term {
		return nil, fmt.Errorf("read pending block %d from the log: it has term %d there, but %d was applied", b.index, l.Term, b.term)
	}
	return l.Data, nil
}
