package parquet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/telemetry"
)

const lockName = "store.lock"

// Store is the segment files below one directory. Its methods may be called
// from any goroutine.
type Store struct {
	log     *slog.Logger
	cfg     Config
	disk    disk
	metrics *metrics
	lock    *os.File
	zstd    *zstd.Decoder
	index   *index
	cache   *cache
	retired retired
	now     func() time.Time

	compactPace, scrubPace pace

	encoders sync.Pool // of *encoder
	decoders sync.Pool // of *decoder

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup                      // running method calls
	turns  map[telemetry.ShardID]chan struct{} // who holds the element changes the shard's folder
}

// Open takes the directory and reads the footer of every segment in it. Files
// that a crash left unfinished are removed; files that are not what they should
// be are set aside and logged: Missing reports their ranges. reg may be nil.
func Open(logger *slog.Logger, reg prometheus.Registerer, cfg Config) (*Store, error) {
	return openStore(logger, reg, cfg, osDisk{})
}

func openStore(logger *slog.Logger, reg prometheus.Registerer, cfg Config, d disk) (_ *Store, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("store configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	if err := d.mkdir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("create store directory: %w", err)
	}
	if err := d.syncDir(filepath.Dir(cfg.Dir)); err != nil {
		return nil, fmt.Errorf("sync parent of store directory: %w", err)
	}
	s := &Store{log: logger, cfg: cfg, disk: d, index: newIndex(), turns: map[telemetry.ShardID]chan struct{}{}, now: time.Now}
	s.retired.active = map[uint64]struct{}{}
	s.compactPace, s.scrubPace = newPace(cfg.CompactBytesPerSecond), newPace(cfg.ScrubBytesPerSecond)
	if s.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	if s.zstd, err = newZstdDecoder(); err != nil {
		return nil, err
	}
	if s.metrics, err = newMetrics(reg); err != nil {
		return nil, err
	}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("scan store directory %s: %w", cfg.Dir, err)
	}
	s.cache = newCache(cfg.OpenFilesMax, s.metrics.openFiles)
	s.gauges()
	return s, nil
}

// Close waits for running calls and closes every file. Streams that Open gave
// out stay readable.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.calls.Wait()
	reaped := s.reap(context.Background())
	s.cache.close()
	s.zstd.Close()
	if err := s.lock.Close(); err != nil {
		return errors.Join(reaped, fmt.Errorf("close lock file: %w", err))
	}
	return reaped
}

// Segments lists a shard's segments in ascending order.
func (s *Store) Segments(shard telemetry.ShardID) []Segment {
	return slices.Clone(s.index.segments(shard))
}

// Find returns the segment of exactly this range, or what a compacted one says
// about its part of this range. An expired range is not found: nobody knows its
// digest any more. Write knows that it is done.
func (s *Store) Find(ctx context.Context, shard telemetry.ShardID, from, to uint64) (Segment, bool, error) {
	done, err := s.begin()
	if err != nil {
		return Segment{}, false, err
	}
	defer done()
	defer s.retired.enter()()
	return s.lookup(shard, Range{From: from, To: to}, func(seg *Segment) (*partsTable, error) { return s.table(ctx, seg) })
}

func (s *Store) lookup(shard telemetry.ShardID, r Range, table func(*Segment) (*partsTable, error)) (Segment, bool, error) {
	have, ok := s.index.covering(shard, r)
	if !ok || have.Expired {
		return Segment{}, false, nil
	}
	if have.Range() == r {
		return have, true, nil
	}
	t, err := table(&have)
	if err != nil {
		return Segment{}, false, err
	}
	for i := range t.parts {
		if p := &t.parts[i]; p.From == r.From && p.To == r.To {
			return p.segment(shard), true, nil
		}
	}
	return Segment{}, false, nil
}

// tableInTurn is table for who has the shard's turn.
func (s *Store) tableInTurn(seg *Segment) (*partsTable, error) {
	raw, err := s.disk.open(s.segmentPath(seg))
	if err != nil {
		return nil, fmt.Errorf("open segment %v of shard %d: %w", seg.Range(), seg.Shard, err)
	}
	f, err := s.parse(seg, raw)
	if err != nil {
		return nil, err
	}
	defer f.release()
	t, err := (&decoder{zstd: s.zstd}).parts(f)
	if err != nil {
		return nil, s.corrupt(seg, err)
	}
	return t, nil
}

// table reads a segment's table of parts.
func (s *Store) table(ctx context.Context, seg *Segment) (*partsTable, error) {
	f, err := s.file(ctx, seg)
	if err != nil {
		return nil, err
	}
	defer f.release()
	d := s.decoder()
	defer s.decoders.Put(d)
	t, err := d.parts(f)
	if err != nil {
		return nil, s.corrupt(seg, err)
	}
	return t, nil
}

// Shards lists the shards that have segments, in ascending order.
func (s *Store) Shards() []telemetry.ShardID {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	var list []telemetry.ShardID
	for shard := range s.index.shards {
		list = append(list, shard)
	}
	slices.Sort(list)
	return list
}

// Missing lists the ranges from the beginning of the shard's log up to upTo
// that no segment covers, in ascending order: what must be flushed again or
// fetched from another replica.
func (s *Store) Missing(shard telemetry.ShardID, upTo uint64) []Range {
	return missing(s.index.segments(shard), upTo)
}

// Usage is what the store holds, without files set aside.
func (s *Store) Usage() Usage { return s.index.usage() }

// Path is where a segment's file is, for tools that read it as Parquet.
func (s *Store) Path(seg Segment) string {
	return s.segmentPath(&seg)
}

func (s *Store) segmentPath(seg *Segment) string {
	if seg.Expired {
		return filepath.Join(s.dir(seg.Shard), expiredName(seg.Range()))
	}
	return s.path(seg.Shard, seg.Range())
}

// begin counts a method call in; the result counts it out.
func (s *Store) begin() (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	s.calls.Add(1)
	return s.calls.Done, nil
}

// turn waits until the caller alone may change the shard's folder; the result
// ends the turn.
func (s *Store) turn(ctx context.Context, shard telemetry.ShardID) (func(), error) {
	s.mu.Lock()
	turn, ok := s.turns[shard]
	if !ok {
		turn = make(chan struct{}, 1)
		s.turns[shard] = turn
	}
	s.mu.Unlock()
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another write to shard %d: %w", shard, ctx.Err())
	}
}

func (s *Store) gauges() {
	u := s.index.usage()
	s.metrics.segments.Set(float64(u.Segments))
	s.metrics.bytes.Set(float64(u.Bytes))
}

func (s *Store) dir(shard telemetry.ShardID) string { return filepath.Join(s.cfg.Dir, dirName(shard)) }

func (s *Store) path(shard telemetry.ShardID, r Range) string {
	return filepath.Join(s.dir(shard), fileName(r))
}

func (s *Store) decoder() *decoder {
	if d, ok := s.decoders.Get().(*decoder); ok {
		return d
	}
	return &decoder{zstd: s.zstd}
}

// corrupt wraps damage in a segment's file.
func (s *Store) corrupt(seg *Segment, err error) error {
	s.metrics.damaged.Inc()
	return &CorruptError{Path: filepath.Join(dirName(seg.Shard), filepath.Base(s.segmentPath(seg))), Shard: seg.Shard, From: seg.From, To: seg.To, Err: err}
}

// file returns an open segment file with a reference that the caller releases.
func (s *Store) file(ctx context.Context, seg *Segment) (*segmentFile, error) {
	key := keyOf(seg)
	if f := s.cache.get(key); f != nil {
		return f, nil
	}
	f, err := s.openSegment(ctx, seg)
	if err != nil {
		return nil, err
	}
	s.cache.put(key, f)
	return f, nil
}

func (s *Store) openSegment(ctx context.Context, seg *Segment) (*segmentFile, error) {
	f, err := s.openRaw(ctx, seg)
	if err != nil {
		return nil, err
	}
	return s.parse(seg, f)
}

// openRaw opens the file of a segment that was in the index. When it is not
// there it has been removed meanwhile (ErrNotFound), or removed and installed
// again, or lost: the truth is known to whoever has the turn.
func (s *Store) openRaw(ctx context.Context, seg *Segment) (file, error) {
	path := s.path(seg.Shard, seg.Range())
	f, err := s.disk.open(path)
	if errors.Is(err, fs.ErrNotExist) {
		end, terr := s.turn(ctx, seg.Shard)
		if terr != nil {
			return nil, terr
		}
		defer end()
		if have, _, _ := s.index.find(seg.Shard, seg.Range()); have != *seg {
			return nil, fmt.Errorf("open segment %v of shard %d: %w", seg.Range(), seg.Shard, ErrNotFound)
		}
		if f, err = s.disk.open(path); errors.Is(err, fs.ErrNotExist) {
			return nil, s.corrupt(seg, err)
		}
	}
	if err != nil { // being out of descriptors, for example, is not damage
		return nil, fmt.Errorf("open segment %v of shard %d: %w", seg.Range(), seg.Shard, err)
	}
	return f, nil
}

// parse reads footer and page index of an open file that should be seg.
func (s *Store) parse(seg *Segment, f file) (*segmentFile, error) {
	sf, err := newSegmentFile(f)
	if err != nil {
		return nil, s.corrupt(seg, err)
	}
	if sf.meta.Digest != seg.Digest {
		err = &DigestError{Shard: seg.Shard, From: seg.From, To: seg.To, Have: sf.meta.Digest, Want: seg.Digest}
	} else if sf.meta.Segment != *seg || sf.meta.Namespace != s.cfg.Namespace {
		err = s.corrupt(seg, fmt.Errorf("its footer describes %+v of namespace %d, expected %+v", sf.meta.Segment, sf.meta.Namespace, *seg))
	}
	if err != nil {
		sf.release()
		return nil, err
	}
	return sf, nil
}
