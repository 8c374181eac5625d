package parquet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/telemetry"
)

// An expired range is a line of text in a file of its own: whoever opens the
// directory knows that the range is done although its rows are gone.
//
//	sluice expired 2 namespace 0 shard 7 from 0 to 4711 received 1769180686123456 seal 0123456789abcdef
const (
	expiredVersion = 2
	expiredFormat  = "sluice expired %d namespace %d shard %d from %d to %d received %d "
)

// expiredBytesMax is more than such a line can take.
const expiredBytesMax = 512

func expiredLine(namespace uint32, seg *Segment) []byte {
	b := fmt.Appendf(nil, expiredFormat, expiredVersion, namespace, seg.Shard, seg.From, seg.To, seg.MaxReceived)
	return fmt.Appendf(b, "seal %016x\n", xxh3.Hash(b))
}

// readExpired reads an open file, which it closes.
func (s *Store) readExpired(f file, shard telemetry.ShardID, r Range) (Segment, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, expiredBytesMax))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return Segment{}, fmt.Errorf("read: %w", err)
	}
	seg := Segment{Shard: shard, From: r.From, To: r.To, Expired: true, Bytes: int64(len(b))}
	var version, ns, id uint32
	var from, to uint64
	if n, err := fmt.Sscanf(string(b), expiredFormat, &version, &ns, &id, &from, &to, &seg.MaxReceived); err != nil || n != 6 {
		return Segment{}, errors.New("it is no record of an expired range")
	}
	if string(b) != string(expiredLine(s.cfg.Namespace, &seg)) {
		return Segment{}, fmt.Errorf("it is not the record of namespace %d shard %d range %v", s.cfg.Namespace, shard, r)
	}
	return seg, nil
}

// Expire removes the rows of a shard that were received longer than
// Config.Retention ago, whole windows of them from the beginning of the log on,
// and reports whether there were any. What may be removed depends on rows and clock
// alone, not on how files were compacted: it is the same on every replica. A Keeper
// lets some of it stay for a while, on each replica by what that one knows.
func (s *Store) Expire(ctx context.Context, shard telemetry.ShardID, now time.Time) (bool, error) {
	done, err := s.begin()
	if err != nil {
		return false, err
	}
	defer done()
	if s.cfg.Retention == 0 || len(s.expired(s.index.segments(shard), now)) == 0 {
		return false, nil
	}
	end, err := s.turn(ctx, shard)
	if err != nil {
		return false, err
	}
	defer end()
	old := s.expired(s.index.segments(shard), now)
	if len(old) == 0 {
		return false, nil
	}
	seg := Segment{Shard: shard, To: old[len(old)-1].To, Expired: true}
	rows := uint64(0)
	for i := range old {
		seg.MaxReceived = max(seg.MaxReceived, old[i].MaxReceived)
		rows += old[i].Rows
	}
	if err := s.writeExpired(&seg); err != nil {
		return false, fmt.Errorf("expire range %v of shard %d: %w", seg.Range(), shard, err)
	}
	s.replace(old, &seg)
	if s.cfg.Keeper != nil {
		s.cfg.Keeper.Expired(old)
	}
	s.metrics.expiredRows.Add(float64(rows))
	s.log.Info("rows expired", "shard", shard, "to", seg.To, "files", len(old), "rows", rows)
	return true, nil
}

// expired are the segments to be replaced by one record: a prefix of the log
// without gaps in which at least one has rows, all of windows that are over.
func (s *Store) expired(list []Segment, now time.Time) []Segment {
	at, n := uint64(0), 0
	for i := range list {
		seg := &list[i]
		if seg.From != at || seg.Rows > 0 && !s.over(seg, now) {
			break
		}
		if seg.Rows > 0 && s.cfg.Keeper != nil && s.cfg.Keeper.Keep(seg, s.due(seg), now) {
			break
		}
		if at = seg.To; seg.Rows > 0 {
			n = i + 1
		}
	}
	return list[:n]
}

// due is when the retention of a file with rows is over.
func (s *Store) due(seg *Segment) time.Time {
	return time.UnixMicro((s.window(seg)+1)*s.cfg.window().Microseconds() + s.cfg.Retention.Microseconds())
}

func (s *Store) over(seg *Segment, now time.Time) bool {
	return s.due(seg).UnixMicro() <= clock.Micros(now)
}

// Overdue is a file that is here although its retention is over.
type Overdue struct {
	Segment
	Due time.Time
}

// Overdue lists what the Keeper has kept, and what the next Expire removes: shard
// by shard, in the order of the log.
func (s *Store) Overdue(now time.Time) (out []Overdue) {
	if s.cfg.Retention == 0 {
		return nil
	}
	for _, shard := range s.Shards() {
		for _, seg := range s.index.segments(shard) {
			if seg.Rows > 0 && s.over(&seg, now) {
				out = append(out, Overdue{Segment: seg, Due: s.due(&seg)})
			}
		}
	}
	return out
}

func (s *Store) writeExpired(seg *Segment) error {
	line := expiredLine(s.cfg.Namespace, seg)
	seg.Bytes = int64(len(line))
	return s.commit(seg, func(f file) error {
		_, err := f.Write(line)
		return err
	})
}

// installExpired takes a peer's word that a range has expired; only where this
// store would have let go of it too. The turn is held.
func (s *Store) installExpired(seg *Segment) error {
	window := s.cfg.window().Microseconds()
	if s.cfg.Retention == 0 || (seg.MaxReceived/window)*window+s.cfg.Retention.Microseconds() > s.now().UnixMicro() {
		return fmt.Errorf("range %v of shard %d has expired on the peer, with rows received until %s, but not by the retention of %v here: set store.retention alike on all nodes",
			seg.Range(), seg.Shard, time.UnixMicro(seg.MaxReceived).UTC().Format(time.RFC3339), s.cfg.Retention)
	}
	own := Segment{Shard: seg.Shard, From: seg.From, To: seg.To, MaxReceived: seg.MaxReceived, Expired: true}
	if err := s.writeExpired(&own); err != nil {
		return fmt.Errorf("install expired range %v of shard %d: %w", seg.Range(), seg.Shard, err)
	}
	s.index.add(own)
	s.gauges()
	return nil
}

// probeExpired reads the record behind a name.
func (s *Store) probeExpired(shard telemetry.ShardID, r Range) (Segment, error) {
	want := Segment{Shard: shard, From: r.From, To: r.To, Expired: true}
	path := s.segmentPath(&want)
	f, err := s.disk.open(path)
	if err != nil {
		return Segment{}, fmt.Errorf("open record of an expired range: %w", err)
	}
	seg, err := s.readExpired(f, shard, r)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Segment{}, &CorruptError{Path: path, Shard: shard, From: r.From, To: r.To, Err: err}
	}
	return seg, err
}

func (r Range) contains(o Range) bool { return r.From <= o.From && o.To <= r.To }
