package wal

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/internal/vfs"
)

// lockName is the file in Dir that a running node holds locked.
const lockName = "lock"

// Log is the write-ahead log of a node.
type Log struct {
	logger  *slog.Logger
	metrics *metrics
	cfg     Config
	fs      vfs.FS
	dir     string
	lock    io.Closer

	qmu    sync.Mutex // guards queue, closed and err
	queue  []*request
	closed bool
	err    error
	wake   chan struct{} // one token: the queue is not empty
	failed chan struct{}
	down   atomic.Bool // err is set or closed; spares readers the lock

	latency *latency

	gmu    sync.RWMutex
	groups map[uint32]*Group

	smu  sync.RWMutex
	segs map[uint32]*segment // those with records

	shelf        *shelf
	shelveFailed bool // the last time; only whoever shelves looks at it

	w       writer
	prep    *preparer
	janitor *janitor
	scrub   *scrubber
	stop    chan struct{}
	wg      sync.WaitGroup // preparer, janitor, scrubber
	written chan struct{}  // closed when the writer has ended
}

// Open opens the log in cfg.Dir, or makes a new one. The error wraps
// vfs.ErrLocked when another process has it, ErrForeign when another node or
// cluster wrote it, and is a *CorruptError when acknowledged entries are damaged.
// reg may be nil.
func Open(logger *slog.Logger, reg prometheus.Registerer, cfg Config) (*Log, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	if err := cfg.FS.MkdirAll(cfg.Dir); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	lock, err := cfg.FS.Lock(filepath.Join(cfg.Dir, lockName), false)
	if err != nil {
		return nil, fmt.Errorf("open log: %w: stop the process that uses %s", err, cfg.Dir)
	}
	l := &Log{
		logger: logger, metrics: m, cfg: cfg, fs: cfg.FS, dir: cfg.Dir, lock: lock,
		wake: make(chan struct{}, 1), failed: make(chan struct{}),
		groups: map[uint32]*Group{}, segs: map[uint32]*segment{}, latency: newLatency(),
		stop: make(chan struct{}), written: make(chan struct{}),
	}
	l.shelf = &shelf{fs: cfg.FS, dir: cfg.Dir, metrics: m, lost: l.lostIndex}
	l.w.patience = cfg.Linger
	l.w.plan.over = l.overhead()
	l.janitor = newJanitor(l)
	l.scrub = newScrubber(l)
	if err := l.recover(); err != nil {
		_ = l.closeFiles() // err says more
		_ = lock.Close()
		return nil, err
	}
	l.wg.Go(l.prep.run)
	l.wg.Go(l.janitor.run)
	l.wg.Go(l.scrub.run)
	go l.run()
	return l, nil
}

// Group returns the part of the log of one raft group. It exists once something
// is stored in it.
func (l *Log) Group(id uint32) *Group {
	l.gmu.Lock()
	defer l.gmu.Unlock()
	g := l.groups[id]
	if g == nil {
		g = newGroup(id, l)
		l.groups[id] = g
	}
	return g
}

// Groups lists the groups that hold anything, in order.
func (l *Log) Groups() []uint32 {
	var ids []uint32
	for _, g := range l.sortedGroups() {
		g.mu.RLock()
		if !g.blank() {
			ids = append(ids, g.id)
		}
		g.mu.RUnlock()
	}
	return ids
}

func (l *Log) sortedGroups() []*Group {
	l.gmu.RLock()
	defer l.gmu.RUnlock()
	out := make([]*Group, 0, len(l.groups))
	for _, id := range slices.Sorted(maps.Keys(l.groups)) {
		out = append(out, l.groups[id])
	}
	return out
}

// Failed is closed after a write or sync error. The process must exit then: what
// the disk holds is not known until the log is opened again.
func (l *Log) Failed() <-chan struct{} { return l.failed }

// Err is the error that latched, or nil.
func (l *Log) Err() error {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	return l.err
}

// Full reports whether the disk has no room for another segment. Intake should
// pause; it may go on when Full is false again.
func (l *Log) Full() bool { return l.prep.isFull() }

// Usage is what the log takes on disk.
type Usage struct {
	Bytes     int64 // all files
	InUse     int64 // files with records: the others are empty, and used before a new one is made
	LiveBytes int64 // entries that cannot be removed yet
	Segments  int   // files with records
	Prepared  int   // empty files, the reserve included
}

// Usage reports the size of the log.
func (l *Log) Usage() Usage {
	var u Usage
	l.smu.RLock()
	for _, s := range l.segs {
		u.Segments++
		u.Bytes += s.bytes
		u.LiveBytes += s.live.Load()
	}
	l.smu.RUnlock()
	u.InUse = u.Bytes
	n, bytes := l.prep.stock()
	u.Prepared = n
	u.Bytes += bytes
	return u
}

// Press says that disk is short, or no longer: while it is, segments that are at
// least half dead are rewritten, however few they are. It does not block and is
// meant to be repeated while it lasts, so that what has died meanwhile is seen.
func (l *Log) Press(short bool) {
	l.janitor.pressed.Store(short)
	if short {
		l.janitor.kick()
	}
}

// Close writes out what is waiting, ends the goroutines and releases the
// directory. Calls that come later get ErrClosed.
func (l *Log) Close() error {
	l.qmu.Lock()
	if l.closed {
		l.qmu.Unlock()
		return nil
	}
	l.closed = true
	l.qmu.Unlock()
	l.signal()
	<-l.written
	l.down.Store(true)
	close(l.stop)
	l.prep.halt()
	l.wg.Wait()
	err := l.closeFiles()
	if lerr := l.lock.Close(); lerr != nil {
		err = errors.Join(err, fmt.Errorf("unlock log: %w", lerr))
	}
	return errors.Join(l.Err(), err)
}

func (l *Log) closeFiles() error {
	var errs []error
	l.smu.Lock()
	defer l.smu.Unlock()
	for _, s := range l.segs {
		s.use.Lock() // waits for readers
		errs = append(errs, s.f.Close())
		s.use.Unlock()
	}
	if l.prep != nil {
		errs = append(errs, l.prep.close())
	}
	l.shelf.close()
	return errors.Join(errs...)
}

// fail latches err. The caller is any goroutine of the log.
func (l *Log) fail(err error) error {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	if l.err == nil {
		l.err = fmt.Errorf("write-ahead log failed, the process must exit: %w", err)
		l.down.Store(true)
		l.metrics.failed.Set(1)
		l.logger.Error("write-ahead log failed", "dir", l.dir, "err", err)
		close(l.failed)
	}
	return l.err
}

// readable is nil while the log can answer.
func (l *Log) readable() error {
	if !l.down.Load() {
		return nil
	}
	l.qmu.Lock()
	defer l.qmu.Unlock()
	if l.err != nil {
		return l.err
	}
	return ErrClosed
}

// do hands a request to the writer and waits for its end.
func (l *Log) do(req *request) error {
	if err := l.submit(req); err != nil {
		return err
	}
	return <-req.done
}

// submit queues a request. Every caller waits for its request, so the queue is
// bounded by the number of callers: a few per raft group.
func (l *Log) submit(req *request) error {
	l.qmu.Lock()
	if l.err != nil || l.closed {
		err := l.err
		l.qmu.Unlock()
		if err != nil {
			return err
		}
		return ErrClosed
	}
	l.queue = append(l.queue, req)
	l.qmu.Unlock()
	l.signal()
	return nil
}

func (l *Log) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// segment returns the segment that holds a live entry.
func (l *Log) segment(id uint32) *segment {
	l.smu.RLock()
	defer l.smu.RUnlock()
	return l.segs[id]
}

// addLive is the account of the log's segments.
func (l *Log) addLive(id uint32, delta int64) {
	if s := l.segment(id); s != nil {
		s.live.Add(delta)
	}
}

// damaged reports err once per segment if it is damage.
func (l *Log) damaged(s *segment, err error) {
	var c *CorruptError
	if !errors.As(err, &c) || s.rotten.Swap(true) {
		return
	}
	l.metrics.corrupt.Inc()
	l.logger.Error("log segment is damaged", "segment", c.Segment, "offset", c.Offset, "reason", c.Reason)
	if l.cfg.OnDamage != nil {
		l.cfg.OnDamage(c)
	}
}

// lostIndex tells that a part of the index could not be read back.
func (l *Log) lostIndex(group uint32, sh *shelved, err error) {
	l.metrics.indexLost.Inc()
	l.logger.Warn("a part of the index cannot be read back, it is made again from the segments", "group", group, "first", sh.base, "segments", len(sh.spans), "err", err)
}

// halfSegment is how much a commit and a checkpoint may each take of a segment.
func (l *Log) halfSegment() int64 { return (l.cfg.SegmentBytes - headerBytes) / 2 }

func (l *Log) entryBytesMax() int64 { return l.halfSegment() - 2*recordHeaderMax - l.overhead() }

// now is the wall clock, for people who read the headers.
func now() int64 { return clock.Micros(time.Now()) }
