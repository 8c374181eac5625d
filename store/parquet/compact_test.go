package parquet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	pq "github.com/parquet-go/parquet-go"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// flushes writes n flushes of one log entry each, a minute of telemetry apart.
func flushes(t testing.TB, s *Store, shard telemetry.ShardID, n int) *model {
	t.Helper()
	m := &model{}
	for i := range n {
		b := fleet(shard, uint64(i), uint64(i+1), 5, 6, t0+int64(i)*60e6)
		if i%5 == 4 { // a flush that repeats readings of the one before, and one without rows
			b = fleet(shard, uint64(i), uint64(i+1), 5, 6, t0+int64(i-1)*60e6)
		}
		if i%7 == 6 {
			b = &telemetry.Batch{Shard: shard, From: uint64(i), To: uint64(i + 1), Messages: 2}
		}
		if _, err := s.Write(t.Context(), b); err != nil {
			t.Fatalf("write: %v", err)
		}
		m.batches = append(m.batches, b)
	}
	return m
}

// holds compares all that a store can say with the flushes that were written.
func holds(t testing.TB, s *Store, shard telemetry.ShardID, m *model) {
	t.Helper()
	last := m.batches[len(m.batches)-1].To
	for _, seg := range s.Segments(shard) {
		if err := s.Verify(t.Context(), seg); err != nil {
			t.Fatalf("verify %+v: %v", seg, err)
		}
	}
	for _, device := range []string{"sensor-00000", "sensor-00004", "nobody"} {
		q := everything(device)
		got, covered, err := s.Read(t.Context(), shard, last, q)
		if err != nil || covered != last || !samePoints(got, m.read(q, last)) {
			t.Fatalf("read of %s up to %d gives other rows, %v", device, covered, err)
		}
	}
	for _, b := range m.batches {
		seg, ok, err := s.Find(t.Context(), shard, b.From, b.To)
		if !ok || err != nil || seg.Digest != Digest(b) {
			t.Fatalf("flush (%d, %d] is not found as it was: %v %v", b.From, b.To, ok, err)
		}
		got, err := s.Load(t.Context(), seg)
		want := *b
		want.Term = 0
		if err != nil || !reflect.DeepEqual(got, &want) {
			t.Fatalf("flush (%d, %d] comes back otherwise: %v", b.From, b.To, err)
		}
		if again, err := s.Write(t.Context(), b); err != nil || again.Digest != seg.Digest {
			t.Fatalf("repeat of flush (%d, %d]: %v", b.From, b.To, err)
		}
	}
}

// compactAll merges until nothing is worth it.
func compactAll(t testing.TB, s *Store, shard telemetry.ShardID) {
	t.Helper()
	for {
		did, err := s.Compact(t.Context(), shard)
		if err != nil {
			t.Fatalf("compact: %v", err)
		}
		if !did {
			break
		}
	}
	if err := s.reap(t.Context()); err != nil {
		t.Fatalf("reap: %v", err)
	}
}

func TestCompactionKeepsEveryFlush(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	m := flushes(t, s, 1, 70)
	before := s.Usage()
	compactAll(t, s, 1)
	u := s.Usage()
	if u.Segments >= 16 || u.Rows != before.Rows || u.Messages != before.Messages {
		t.Errorf("usage is %+v, was %+v", u, before)
	}
	if got := files(t, dir); len(got) != u.Segments {
		t.Errorf("%d files for %d segments: %v", len(got), u.Segments, got)
	}
	holds(t, s, 1, m)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if s.Usage() != u {
		t.Errorf("usage after reopening is %+v, was %+v", s.Usage(), u)
	}
	holds(t, s, 1, m)
}

func TestCompactedFilesAreOrdinaryParquet(t *testing.T) {
	path := mergedFile(t)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	rows, err := pq.Read[row](f, info.Size())
	if err != nil || len(rows) != 3*3*4*4 {
		t.Fatalf("read with the library: %d rows, %v", len(rows), err)
	}
	if !slices.IsSortedFunc(rows, func(a, b row) int {
		return cmpOr(a.Device, b.Device, a.Sensor, b.Sensor, a.Time, b.Time)
	}) {
		t.Error("rows are not sorted by device, sensor and time")
	}
}

func cmpOr(d1, d2, s1, s2 string, t1, t2 int64) int {
	switch {
	case d1 != d2:
		return bytes.Compare([]byte(d1), []byte(d2))
	case s1 != s2:
		return bytes.Compare([]byte(s1), []byte(s2))
	}
	return int(t1 - t2)
}

func TestEveryFlippedBitOfACompactedFileIsFound(t *testing.T) {
	path := mergedFile(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	shard := filepath.Join(dir, "shard-001")
	if err := os.MkdirAll(shard, 0o755); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(shard, filepath.Base(path))
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	seg := s.Segments(1)[0]
	for at := range data {
		flip(t, path, data, at)
		s.cache.evict(keyOf(&seg))
		if err := s.Verify(t.Context(), seg); !errors.Is(err, ErrCorrupt) && !errors.As(err, new(*DigestError)) {
			t.Fatalf("flip at %d of %d: verify says %v", at, len(data), err)
		}
	}
}

// give copies what a peer lacks of a range.
func give(t testing.TB, from, to *Store, shard telemetry.ShardID, r Range) {
	t.Helper()
	err := from.Export(t.Context(), shard, r, func(seg Segment, body io.Reader) error {
		return to.Install(t.Context(), seg, body)
	})
	if err != nil {
		t.Fatalf("export %v: %v", r, err)
	}
}

func TestPeersServeEachOtherWhateverTheyCompacted(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		a, b := newStore(t), newStore(t)
		const n = 24
		m := flushes(t, a, 1, n)
		flushes(t, b, 1, n)
		for _, s := range []*Store{a, b} {
			for range 4 {
				list := s.Segments(1)
				if len(list) < 3 {
					break
				}
				lo := rng.IntN(len(list) - 1)
				if _, err := s.merge(t.Context(), list[lo:lo+2+rng.IntN(len(list)-lo-1)]); err != nil {
					t.Fatal(err)
				}
			}
		}
		list := b.Segments(1)
		for range 1 + rng.IntN(len(list)) {
			seg := list[rng.IntN(len(list))]
			if err := b.SetAside(t.Context(), seg, errors.New("test")); err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
		}
		for _, r := range b.Missing(1, n) {
			give(t, a, b, 1, r)
		}
		if gaps := b.Missing(1, n); gaps != nil {
			t.Fatalf("still missing %v of %v from %v", gaps, b.Segments(1), a.Segments(1))
		}
		holds(t, b, 1, m)
		compactAll(t, b, 1)
		holds(t, b, 1, m)
	}
}

// days writes a flush of every few hours of receipt time, over days.
func days(t testing.TB, s *Store, shard telemetry.ShardID, n int) {
	t.Helper()
	for i := range n {
		b := fleet(shard, uint64(i), uint64(i+1), 2, 2, t0+int64(i)*3600e6)
		if i%9 == 8 {
			b = &telemetry.Batch{Shard: shard, From: uint64(i), To: uint64(i + 1)}
		}
		if _, err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRetentionIsTheSameHoweverFilesWereCompacted(t *testing.T) {
	cfg := Config{Retention: 240 * time.Hour}
	var stores []*Store
	for range 2 {
		cfg.Dir = filepath.Join(t.TempDir(), "store")
		s, err := Open(quiet(), nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		days(t, s, 1, 24*12)
		stores = append(stores, s)
	}
	compactAll(t, stores[0], 1)
	if a, b := stores[0].Usage(), stores[1].Usage(); a.Segments > 24+9 || b.Segments != 24*12 {
		t.Fatalf("%d and %d segments", a.Segments, b.Segments)
	}
	for day := range 40 {
		now := time.UnixMicro(t0).Add(time.Duration(day) * 24 * time.Hour)
		var left [2][]store.Point
		for i, s := range stores {
			s.now = func() time.Time { return now }
			if _, err := s.Expire(t.Context(), 1, now); err != nil {
				t.Fatalf("expire: %v", err)
			}
			if err := s.reap(t.Context()); err != nil {
				t.Fatal(err)
			}
			if gaps := s.Missing(1, 24*12); gaps != nil {
				t.Fatalf("expired ranges are missing: %v", gaps)
			}
			oldest, _, err := s.Read(t.Context(), 1, 24*12, everything("sensor-00000"))
			if err != nil {
				t.Fatal(err)
			}
			left[i] = oldest
			if len(oldest) > 0 && now.UnixMicro()-oldest[0].Received > (cfg.Retention+24*time.Hour).Microseconds() {
				t.Errorf("day %d: rows of %v are left", day, time.UnixMicro(oldest[0].Received))
			}
			kept := int64(0)
			for h := range 24 * 12 {
				if h%9 != 8 && now.UnixMicro()-(t0+int64(h)*3600e6) < cfg.Retention.Microseconds()-10e6 {
					kept += 2 * 4
				}
			}
			if int64(len(oldest)) < kept {
				t.Errorf("day %d: %d rows are left, %d are younger than the retention", day, len(oldest), kept)
			}
		}
		if !samePoints(left[0], left[1]) {
			t.Errorf("day %d: one replica has %d rows left, the other %d", day, len(left[0]), len(left[1]))
		}
	}
	for _, s := range stores {
		if u := s.Usage(); u.Rows != 0 {
			t.Errorf("in the end usage is %+v", u)
		}
		again := open(t, copyOf(t, s))
		if got := again.Segments(1); !slices.Equal(got, s.Segments(1)) || len(again.Missing(1, 24*11)) > 0 {
			t.Errorf("after reopening segments are %+v", got)
		}
	}
	// A range that has expired is done: a replay that flushes it again, or a peer
	// that lacks it, keeps nothing of it.
	s := stores[0]
	b := fleet(1, 3, 4, 2, 2, t0+3*3600e6)
	if seg, err := s.Write(t.Context(), b); err != nil || seg.Digest != Digest(b) || s.Usage().Rows != 0 {
		t.Errorf("flush of an expired range: %+v, %v", seg, err)
	}
	peer, err := Open(quiet(), nil, Config{Dir: filepath.Join(t.TempDir(), "store"), Retention: cfg.Retention})
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	peer.now = s.now
	give(t, s, peer, 1, Range{From: 7, To: 100})
	give(t, s, peer, 1, Range{From: 0, To: 7})
	if gaps := peer.Missing(1, 100); gaps != nil {
		t.Errorf("peer still lacks %v", gaps)
	}
	other := newStore(t)
	if err := other.Install(t.Context(), Segment{Shard: 1, To: 5, Expired: true, MaxReceived: t0}, nil); err == nil {
		t.Error("a store that keeps everything took an expired range")
	}
}

// copyOf copies a store's directory.
func copyOf(t testing.TB, s *Store) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(s.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFilesOfDifferentWindowsAreNeverMerged(t *testing.T) {
	s := newStore(t)
	days(t, s, 1, 24*5)
	compactAll(t, s, 1)
	list := s.Segments(1)
	for _, seg := range list {
		f, err := s.table(t.Context(), &seg)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.parts {
			if p.Rows > 0 && p.MaxReceived/86400e6 != seg.MaxReceived/86400e6 {
				t.Errorf("segment %+v has a part received until %d", seg, p.MaxReceived)
			}
		}
	}
	if len(list) > 5+16 {
		t.Errorf("%d files are left of five days", len(list))
	}
}

func TestRowsAreWrittenFewTimes(t *testing.T) {
	s := newStore(t)
	rows := uint64(0)
	var list []Segment
	const n = 3000
	for i := range n {
		list = append(list, Segment{Shard: 1, From: uint64(i), To: uint64(i + 1), Rows: 100, Parts: 1, MaxReceived: t0})
		for {
			group := s.plan(list)
			if group == nil {
				break
			}
			merged := Segment{Shard: 1, From: group[0].From, To: group[len(group)-1].To, MaxReceived: t0}
			for _, seg := range group {
				merged.Rows += seg.Rows
				merged.Parts += seg.Parts
			}
			rows += merged.Rows
			lo := slices.Index(list, group[0])
			list = slices.Replace(list, lo, lo+len(group), merged)
		}
	}
	if len(list) > 40 || rows > 8*n*100 {
		t.Errorf("%d flushes became %d files, every row was written %.1f times", n, len(list), float64(rows)/(n*100))
	}
	t.Logf("%d files, %.1f writes of every row", len(list), float64(rows)/(n*100))
}

func TestDamagedInputIsSetAsideAndNotMerged(t *testing.T) {
	s := newStore(t)
	flushes(t, s, 1, compactFilesMin)
	bad := s.Segments(1)[3]
	data, err := os.ReadFile(s.Path(bad))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, s.Path(bad), data, 200)
	if did, err := s.Compact(t.Context(), 1); did || !errors.Is(err, ErrCorrupt) {
		t.Fatalf("compact says %v, %v", did, err)
	}
	if got := s.Missing(1, compactFilesMin); !slices.Equal(got, []Range{bad.Range()}) {
		t.Errorf("missing is %v", got)
	}
	for _, name := range files(t, s.cfg.Dir) {
		if filepath.Ext(name) == suffixTemp {
			t.Errorf("leftover %s", name)
		}
	}
}

func TestScrubFindsColdDamage(t *testing.T) {
	s := newStore(t)
	s.scrubPace = newPace(1 << 30)
	flushes(t, s, 1, 3)
	bad := s.Segments(1)[1]
	data, err := os.ReadFile(s.Path(bad))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, s.Path(bad), data, len(data)/2)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Maintain(ctx, func(err error) { t.Errorf("maintenance failed: %v", err) })
	}()
	deadline := time.Now().Add(time.Minute)
	for !slices.Equal(s.Missing(1, 3), []Range{bad.Range()}) {
		if time.Now().After(deadline) {
			t.Fatal("damage was not found in a minute")
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-done
}

// TestReadsSeeEveryRowWhileFilesAreCompacted runs queries, exports and flushes
// against compaction and the removal of what it replaces.
func TestReadsSeeEveryRowWhileFilesAreCompacted(t *testing.T) {
	s, err := Open(quiet(), nil, Config{Dir: filepath.Join(t.TempDir(), "store"), OpenFilesMax: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const n = 60
	m := &model{}
	for i := range n {
		m.batches = append(m.batches, fleet(1, uint64(i), uint64(i+1), 3, 4, t0+int64(i)*4e6))
	}
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 8)
	loop := func(f func() error) chan struct{} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ctx.Err() == nil {
				if err := f(); err != nil && ctx.Err() == nil {
					errs <- err
					return
				}
			}
		}()
		return done
	}
	var loops []chan struct{}
	for range 2 {
		loops = append(loops, loop(func() error {
			q := everything("sensor-00001")
			got, covered, err := s.Read(ctx, 1, 0, q)
			if err == nil && !samePoints(got, m.read(q, covered)) {
				err = fmt.Errorf("read up to %d gives other rows", covered)
			}
			return err
		}))
	}
	loops = append(loops, loop(func() error {
		return s.Export(ctx, 1, Range{From: 5, To: 11}, func(_ Segment, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
	}), loop(func() error {
		_, err := s.Compact(ctx, 1)
		return errors.Join(err, s.reap(ctx))
	}))
	for _, b := range m.batches {
		if _, err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); s.Usage().Segments > 24 && len(errs) == 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	for _, done := range loops {
		<-done
	}
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if u := s.Usage(); u.Segments > 24 {
		t.Errorf("%d segments are left", u.Segments)
	}
	holds(t, s, 1, &model{batches: m.batches[:n]})
}
