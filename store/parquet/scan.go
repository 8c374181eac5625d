package parquet

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/telemetry"
)

// suffixDropped marks a shard's folder whose removal has begun.
const suffixDropped = ".dropped"

// scan fills the index from the directory and finishes what a crash interrupted.
func (s *Store) scan() error {
	entries, err := s.disk.readDir(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("list directory: %w", err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffixDropped); ok && e.IsDir() {
			if _, ok := parseDirName(name); ok {
				if err := s.removeFolder(filepath.Join(s.cfg.Dir, e.Name())); err != nil {
					return err
				}
			}
			continue
		}
		shard, ok := parseDirName(e.Name())
		if !ok || !e.IsDir() {
			continue // the lock file, or not ours
		}
		if err := s.scanShard(shard); err != nil {
			return fmt.Errorf("shard %d: %w", shard, err)
		}
	}
	return nil
}

func (s *Store) scanShard(shard telemetry.ShardID) error {
	entries, err := s.disk.readDir(s.dir(shard))
	if err != nil {
		return fmt.Errorf("list directory: %w", err)
	}
	var found []Segment
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffixTemp) {
			if err := s.disk.remove(filepath.Join(s.dir(shard), e.Name())); err != nil {
				return fmt.Errorf("remove unfinished segment: %w", err)
			}
			continue
		}
		probe := s.probe
		r, ok := parseFileName(e.Name())
		if !ok {
			if r, ok = parseExpiredName(e.Name()); !ok {
				continue // set aside, or not ours
			}
			probe = s.probeExpired
		}
		seg, err := probe(shard, r)
		if errors.Is(err, ErrCorrupt) {
			s.metrics.damaged.Inc()
			why := err
			if err = s.setAside(shard, e.Name(), why); err == nil {
				s.tell(shard, e.Name(), why)
			}
		} else if err == nil {
			found = append(found, seg)
		}
		if err != nil {
			return err
		}
	}
	return s.adopt(shard, found)
}

// rangeOf is the range that a file is named by, whatever it holds.
func rangeOf(name string) (Range, bool) {
	if r, ok := parseFileName(name); ok {
		return r, true
	}
	return parseExpiredName(name)
}

// probe reads a file's footer.
func (s *Store) probe(shard telemetry.ShardID, r Range) (Segment, error) {
	path := s.path(shard, r)
	f, err := s.disk.open(path)
	if err != nil {
		return Segment{}, fmt.Errorf("open segment: %w", err)
	}
	_, meta, _, err := readFooter(f)
	if cerr := f.Close(); err == nil && cerr != nil {
		return Segment{}, fmt.Errorf("close segment: %w", cerr)
	}
	if errors.Is(err, errLater) { // setting it aside would take every file away from who goes back a version
		return Segment{}, fmt.Errorf("segment %s: %w", path, err)
	}
	if err == nil && (meta.Shard != shard || meta.Range() != r || meta.Namespace != s.cfg.Namespace) {
		err = fmt.Errorf("it holds namespace %d shard %d range %v", meta.Namespace, meta.Shard, meta.Range())
	}
	if err != nil {
		return Segment{}, &CorruptError{Path: path, Shard: shard, From: r.From, To: r.To, Err: err}
	}
	return meta.Segment, nil
}

// adopt puts segments into the index. A file that a longer one says to replace
// is what a crash left of a compaction, or of retention: it is removed. Other two
// that share log entries cannot both be right: the one with the longer range stays.
func (s *Store) adopt(shard telemetry.ShardID, found []Segment) error {
	slices.SortStableFunc(found, func(a, b Segment) int {
		if c := cmp.Compare(b.To-b.From, a.To-a.From); c != 0 || a.Expired == b.Expired {
			return c
		}
		if a.Expired { // what has expired has replaced the rows
			return -1
		}
		return 1
	})
	for _, seg := range found {
		have, same, overlaps := s.index.find(shard, seg.Range())
		if !same && !overlaps {
			s.index.add(seg)
			continue
		}
		replaced, err := s.replaces(&have, &seg)
		if err != nil {
			return err
		}
		path := s.segmentPath(&seg)
		if replaced {
			err = s.disk.remove(path)
		} else {
			why := &OverlapError{Shard: shard, Range: seg.Range(), Have: have.Range()}
			if err = s.setAside(shard, filepath.Base(path), why); err == nil {
				s.tell(shard, filepath.Base(path), why)
			}
		}
		if err != nil {
			return fmt.Errorf("remove replaced segment %s: %w", path, err)
		}
	}
	return nil
}

// replaces reports whether all that seg holds is a part of have.
func (s *Store) replaces(have, seg *Segment) (bool, error) {
	if !have.Range().contains(seg.Range()) {
		return false, nil
	}
	if have.Expired || seg.Expired {
		return have.Expired, nil
	}
	t, err := s.tableInTurn(have)
	if errors.Is(err, ErrCorrupt) {
		return false, nil // both are kept, one under another name
	}
	if err != nil {
		return false, err
	}
	lo := slices.IndexFunc(t.parts, func(p part) bool { return p.From == seg.From })
	hi := slices.IndexFunc(t.parts, func(p part) bool { return p.To == seg.To }) + 1
	if lo < 0 || hi <= lo {
		return false, nil
	}
	digest := t.parts[lo].Digest
	if hi-lo > 1 {
		digest = partsDigest(s.cfg.Namespace, seg.Shard, t.parts[lo:hi])
	}
	return digest == seg.Digest && seg.Parts == hi-lo, nil
}

// setAside renames a file so that it is no segment any more. It is kept: a
// person may want to look at it.
func (s *Store) setAside(shard telemetry.ShardID, name string, why error) error {
	path := filepath.Join(s.dir(shard), name)
	if err := s.disk.rename(path, path+suffixDamaged); err != nil {
		return fmt.Errorf("set segment %s aside: %w", path, err)
	}
	if err := s.disk.syncDir(s.dir(shard)); err != nil {
		return fmt.Errorf("sync directory of shard %d: %w", shard, err)
	}
	s.log.Warn("segment set aside, it will be fetched or flushed again", "shard", shard, "path", path+suffixDamaged, "err", why)
	return nil
}

// tell says that a segment was set aside, after it is missing for everybody.
func (s *Store) tell(shard telemetry.ShardID, name string, why error) {
	if r, ok := rangeOf(name); ok && s.cfg.OnDamage != nil {
		s.cfg.OnDamage(shard, r, why)
	}
}

// removeFolder removes a folder with the files in it.
func (s *Store) removeFolder(path string) error {
	entries, err := s.disk.readDir(path)
	if err != nil {
		return fmt.Errorf("list %s: %w", path, err)
	}
	for _, e := range entries {
		if err := s.disk.remove(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove file of dropped shard: %w", err)
		}
	}
	if err := s.disk.remove(path); err != nil {
		return fmt.Errorf("remove folder of dropped shard: %w", err)
	}
	return nil
}
