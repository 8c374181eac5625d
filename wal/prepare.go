package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// reserveSegments stay prepared when the disk is full, for votes,
	// configurations, watermarks, truncation and the rewriting that frees space.
	reserveSegments = 2

	// fillBytes is written at once while a segment is zeroed, fillSyncBytes
	// between two syncs: commits that sync meanwhile wait for few megabytes.
	fillBytes     = 1 << 20
	fillSyncBytes = 8 << 20

	// fullRetry is how soon a full disk is asked again.
	fullRetry = 250 * time.Millisecond

	// spareSuffix marks a file that is not yet, or no longer, a segment. Open
	// deletes it.
	spareSuffix = ".spare"
)

// preparer makes empty segments ahead of their use, from recycled files or new
// ones, so that the writer never waits for an allocation and a full disk is
// known before it hurts. Prepared segments have consecutive sequences.
type preparer struct {
	l    *Log
	id   [16]byte // of the log
	wake chan struct{}

	mu      sync.Mutex
	changed *sync.Cond
	ready   []*segment // in order of sequence
	reuse   []*segment // empty, their names and headers are from an earlier life
	begun   *segment   // of reuse, renamed by an attempt that found no space
	next    uint64     // sequence of the next segment to prepare
	want    int        // how many to have ready
	full    bool
	stopped bool
}

func newPreparer(l *Log, id [16]byte, next uint64, ready []*segment) *preparer {
	p := &preparer{l: l, id: id, wake: make(chan struct{}, 1), ready: ready, next: next, want: 1 + reserveSegments}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// take removes the first prepared segment, waiting for it if need be. The error
// is ErrFull when there is none and the disk is full.
func (p *preparer) take() (*segment, error) {
	if err := p.await(1); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.ready[0]
	p.ready = append(p.ready[:0], p.ready[1:]...)
	p.want = 1 + reserveSegments
	p.l.metrics.prepared.Set(float64(len(p.ready)))
	p.kick()
	return s, nil
}

// await waits until n segments are prepared; n may be more than are usually kept.
func (p *preparer) await(n int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.ready) < n {
		switch {
		case p.stopped:
			return ErrClosed
		case p.full:
			return ErrFull
		}
		if err := p.l.Err(); err != nil {
			return err
		}
		p.want = max(p.want, n)
		p.kick()
		p.changed.Wait()
	}
	return nil
}

// give takes an empty segment back, to be reused or deleted.
func (p *preparer) give(s *segment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reuse = append(p.reuse, s)
	p.kick()
}

func (p *preparer) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *preparer) isStopped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped
}

func (p *preparer) isFull() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.full
}

func (p *preparer) stock() (files int, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range [][]*segment{p.ready, p.reuse} {
		for _, s := range list {
			bytes += s.bytes
		}
	}
	return len(p.ready), bytes
}

// halt ends the goroutine and everybody who waits.
func (p *preparer) halt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.changed.Broadcast()
	p.kick()
}

func (p *preparer) close() error {
	var errs []error
	for _, list := range [][]*segment{p.ready, p.reuse} {
		for _, s := range list {
			errs = append(errs, s.f.Close())
		}
	}
	return errors.Join(errs...)
}

// run is the preparer goroutine.
func (p *preparer) run() {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		switch more, err := p.step(); {
		case err != nil:
			_ = p.l.fail(err)
			p.mu.Lock()
			p.stopped = true
			p.changed.Broadcast()
			p.mu.Unlock()
			return
		case more:
			continue
		}
		if p.isFull() {
			retry.Reset(fullRetry)
		}
		select {
		case <-p.wake:
		case <-retry.C:
		case <-p.l.stop:
			return
		}
	}
}

// step does one piece of work and reports whether there may be more.
func (p *preparer) step() (more bool, err error) {
	failed := p.l.Err() != nil // then the disk is left alone
	p.mu.Lock()
	if p.stopped || failed {
		p.mu.Unlock()
		return false, nil
	}
	var old *segment
	short := len(p.ready) < p.want
	surplus := len(p.ready) + len(p.reuse) - p.want - p.l.cfg.SpareSegments
	if len(p.reuse) > 0 {
		old = p.nextOld()
		if old.bytes != p.l.cfg.SegmentBytes || surplus > 0 {
			p.reuse, p.begun = removeSegment(p.reuse, old), nil
			p.mu.Unlock()
			return true, p.discard(old)
		}
	}
	seq := p.next
	p.mu.Unlock()
	if !short {
		return false, nil
	}
	s, err := p.make(old, seq)
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.changed.Broadcast()
	if isNoSpace(err) {
		if !p.full {
			p.l.logger.Warn("disk is full, intake pauses", "dir", p.l.dir, "prepared", len(p.ready), "err", err)
		}
		p.setFull(true)
		p.begun = old
		return false, nil
	}
	if errors.Is(err, ErrClosed) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.ready = append(p.ready, s)
	p.l.metrics.prepared.Set(float64(len(p.ready)))
	p.next++
	if old != nil {
		p.reuse, p.begun = removeSegment(p.reuse, old), nil
	}
	if p.full && len(p.ready) > reserveSegments {
		p.l.logger.Info("disk has room again, intake resumes", "dir", p.l.dir)
		p.setFull(false)
	}
	return true, nil
}

// nextOld is the recycled segment to go on with: the one that an attempt without
// space has left under a name that the next segment takes, if there is one.
func (p *preparer) nextOld() *segment {
	if p.begun != nil {
		return p.begun
	}
	return p.reuse[len(p.reuse)-1]
}

func removeSegment(list []*segment, s *segment) []*segment {
	for i := range list {
		if list[i] == s {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}

func (p *preparer) setFull(full bool) {
	p.full = full
	v := 0.0
	if full {
		v = 1
		p.l.janitor.kick() // rewriting may free a segment
	}
	p.l.metrics.full.Set(v)
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// make prepares segment seq, from old if it is not nil. Until its header is
// synced the file is a spare; then its name becomes that of a segment. So a file
// with the name of a segment has its header, or is damaged.
func (p *preparer) make(old *segment, seq uint64) (*segment, error) {
	s := &segment{name: segmentName(seq)}
	s.segmentHeader = segmentHeader{
		seq: seq, bytes: p.l.cfg.SegmentBytes, created: now(), logID: p.id, node: p.l.cfg.Node, cluster: p.l.cfg.Cluster,
	}
	s.key = newSegmentKey(s.logID, s.seq)
	if p.l.cfg.Encrypt {
		if err := s.encrypt(p.l.cfg.Keys[0]); err != nil {
			return nil, fmt.Errorf("prepare log segment %s: %w", s.name, err)
		}
	}
	s.base.Store(headerBytes)
	s.end.Store(headerBytes)
	spare := filepath.Join(p.l.dir, s.name+spareSuffix)
	var err error
	if old != nil {
		err = p.retitle(old, spare)
		s.f = old.f
	} else {
		err = p.create(s, spare)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare log segment %s: %w", s.name, err)
	}
	if err := p.title(s, spare, old); err != nil {
		if old == nil {
			_ = s.f.Close()
		}
		return nil, fmt.Errorf("prepare log segment %s: %w", s.name, err)
	}
	return s, nil
}

// retitle turns a recycled segment into a spare, durably: its header must not
// change while its name may still be that of a segment.
func (p *preparer) retitle(old *segment, spare string) error {
	if path := filepath.Join(p.l.dir, old.name); path != spare { // else an earlier attempt came this far
		if err := p.l.fs.Rename(path, spare); err != nil {
			return err
		}
		old.name = filepath.Base(spare)
	}
	return p.l.fs.SyncDir(p.l.dir)
}

// create makes a zeroed file of full size. Nothing remains of it after an error.
func (p *preparer) create(s *segment, spare string) (err error) {
	if err := p.l.fs.Remove(spare); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.f, err = p.l.fs.Create(spare); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = s.f.Close()
			_ = p.l.fs.Remove(spare)
		}
	}()
	zeros := make([]byte, min(fillBytes, s.bytes))
	for off := int64(0); off < s.bytes; off += int64(len(zeros)) {
		zeros = zeros[:min(int64(len(zeros)), s.bytes-off)]
		if p.isStopped() { // Close does not wait for the rest
			return ErrClosed
		}
		if _, err = s.f.WriteAt(zeros, off); err != nil {
			return err
		}
		if (off+int64(len(zeros)))%fillSyncBytes == 0 {
			if err = s.f.Fdatasync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// title writes the header and gives the spare, which old has been if it is not
// nil, its name. All that a sync that failed could have lost is written again.
func (p *preparer) title(s *segment, spare string, old *segment) error {
	if _, err := s.f.WriteAt(s.encode(), 0); err != nil {
		return err
	}
	if err := s.f.Fdatasync(); err != nil {
		return err
	}
	if err := p.l.fs.Rename(spare, filepath.Join(p.l.dir, s.name)); err != nil {
		return err
	}
	if old != nil {
		old.name = s.name
	}
	return p.l.fs.SyncDir(p.l.dir)
}

// discard deletes a file that is not needed any more.
func (p *preparer) discard(s *segment) error {
	if err := s.f.Close(); err != nil {
		return fmt.Errorf("close recycled log segment %s: %w", s.name, err)
	}
	if err := p.l.fs.Remove(filepath.Join(p.l.dir, s.name)); err != nil {
		return fmt.Errorf("delete recycled log segment %s: %w", s.name, err)
	}
	return p.l.fs.SyncDir(p.l.dir)
}
