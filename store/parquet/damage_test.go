package parquet

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// flip writes the file with one bit changed.
func flip(t testing.TB, path string, data []byte, at int) {
	t.Helper()
	spoilt := slices.Clone(data)
	spoilt[at] ^= 1 << (at % 8)
	if err := os.WriteFile(path, spoilt, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestEveryFlippedBitIsFoundAndNeverGivesOtherRows(t *testing.T) {
	s := newStore(t)
	b := fleet(1, 0, 9, 4, 12, t0)
	seg, err := s.Write(t.Context(), b)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	q := store.Query{Device: "sensor-00002", From: t0, To: t0 + 60e6, Limit: 1000}
	want := (&model{batches: []*telemetry.Batch{b}}).read(q, 9)
	path := s.Path(seg)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := range data {
		flip(t, path, data, at)
		s.cache.evict(fileKey{shard: 1, r: seg.Range()})
		if err := s.Verify(t.Context(), seg); !errors.Is(err, ErrCorrupt) && !errors.As(err, new(*DigestError)) {
			t.Fatalf("flip at %d of %d: verify says %v", at, len(data), err)
		}
		got, _, err := s.Read(t.Context(), 1, 9, q)
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.As(err, new(*DigestError)) {
			t.Fatalf("flip at %d: read says %v", at, err)
		}
		if err == nil && !samePoints(got, want) {
			t.Fatalf("flip at %d: read gives other rows: %+v", at, got)
		}
	}
}

func TestOpenSetsDamagedFilesAside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	var segs []Segment
	for i := range uint64(4) {
		seg, err := s.Write(t.Context(), fleet(1, i, i+1, 2, 3, t0))
		if err != nil {
			t.Fatalf("write: %v", err)
		}
		segs = append(segs, seg)
	}
	s.Close()
	data, err := os.ReadFile(s.Path(segs[1]))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, s.Path(segs[1]), data, len(data)-300)                                                                          // in the footer
	errs := errors.Join(os.Truncate(s.Path(segs[2]), 100), os.Rename(s.Path(segs[3]), s.path(1, Range{From: 10, To: 11}))) // cut short; another's name
	errs = errors.Join(errs, os.WriteFile(s.Path(segs[0])+suffixTemp, data, 0o644), os.WriteFile(filepath.Join(dir, "shard-001", "notes.txt"), nil, 0o644))
	if errs != nil {
		t.Fatal(errs)
	}
	s = open(t, dir)
	if got := s.Segments(1); !slices.Equal(got, segs[:1]) {
		t.Errorf("segments are %+v", got)
	}
	if got := s.Missing(1, 4); !slices.Equal(got, []Range{{1, 4}}) {
		t.Errorf("missing is %v", got)
	}
	want := []string{
		"shard-001/0000000000000001-0000000000000001.parquet",
		"shard-001/0000000000000002-0000000000000002.parquet.damaged",
		"shard-001/0000000000000003-0000000000000003.parquet.damaged",
		"shard-001/000000000000000b-000000000000000b.parquet.damaged",
		"shard-001/notes.txt",
	}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("files are %v", got)
	}
	if again, err := s.Write(t.Context(), fleet(1, 1, 2, 2, 3, t0)); err != nil || again != segs[1] {
		t.Errorf("flush of a damaged range: %+v, %v", again, err)
	}
}

// TestFileOfALaterVersionStopsTheStart: it is no damage, and must stay where it is.
func TestFileOfALaterVersionStopsTheStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	seg, err := s.Write(t.Context(), fleet(1, 0, 1, 1, 1, t0))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	data, err := os.ReadFile(s.Path(seg))
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte(keyFormat+"\x18\x01"))
	data[at+len(keyFormat)+2] = '9'
	if err := os.WriteFile(s.Path(seg), reseal(data), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := Open(quiet(), nil, Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), `format "9"`) || !strings.Contains(err.Error(), "upgrade") {
		if err == nil {
			again.Close()
		}
		t.Errorf("open says %v", err)
	}
	if got := files(t, dir); len(got) != 1 || strings.HasSuffix(got[0], suffixDamaged) {
		t.Errorf("files are %v", got)
	}
}

func TestOverlappingFilesDoNotBothCount(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	long, err := s.Write(t.Context(), fleet(1, 0, 10, 1, 1, t0))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	other := newStore(t)
	for _, r := range []Range{{2, 3}, {9, 12}} {
		seg, err := other.Write(t.Context(), fleet(1, r.From, r.To, 1, 1, t0))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(other.Path(seg), s.Path(seg)); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir)
	if got := s.Segments(1); !slices.Equal(got, []Segment{long}) {
		t.Errorf("segments are %+v", got)
	}
}

// fetch copies a segment's file out of a store.
func fetch(t testing.TB, s *Store, seg Segment) []byte {
	t.Helper()
	r, got, err := s.Open(seg.Shard, seg.From, seg.To)
	if err != nil || got != seg {
		t.Fatalf("open segment: %+v, %v", got, err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read segment: %v", err)
	}
	return data
}

func TestInstallTakesAPeersSegment(t *testing.T) {
	from, to := newStore(t), newStore(t)
	b := fleet(2, 5, 9, 3, 40, t0)
	seg, err := from.Write(t.Context(), b)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	data := fetch(t, from, seg)
	for range 2 {
		if err := to.Install(t.Context(), seg, bytes.NewReader(data)); err != nil {
			t.Fatalf("install: %v", err)
		}
	}
	if err := to.Verify(t.Context(), seg); err != nil {
		t.Errorf("verify: %v", err)
	}
	if again, err := to.Write(t.Context(), b); err != nil || again != seg {
		t.Errorf("flush of an installed range: %+v, %v", again, err)
	}
	if err := to.SetAside(t.Context(), seg, errors.New("test")); err != nil {
		t.Fatalf("set aside: %v", err)
	}
	if got := to.Missing(2, 9); !slices.Equal(got, []Range{{0, 9}}) {
		t.Errorf("missing is %v", got)
	}
	if _, _, err := to.Open(2, 5, 9); !errors.Is(err, ErrNotFound) {
		t.Errorf("open of a segment set aside: %v", err)
	}
	if err := to.Install(t.Context(), seg, bytes.NewReader(data)); err != nil {
		t.Errorf("install again: %v", err)
	}
	other := seg
	other.Digest[3]++
	if err := to.Install(t.Context(), other, bytes.NewReader(data)); !errors.As(err, new(*DigestError)) {
		t.Errorf("install of another content: %v", err)
	}
}

func TestInstallRefusesWhatIsNotTheSegment(t *testing.T) {
	from, to := newStore(t), newStore(t)
	seg, err := from.Write(t.Context(), fleet(2, 5, 9, 3, 8, t0))
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	data := fetch(t, from, seg)
	refused := func(what string, seg Segment, data []byte) {
		t.Helper()
		err := to.Install(t.Context(), seg, bytes.NewReader(data))
		if !errors.Is(err, ErrCorrupt) && !errors.As(err, new(*DigestError)) {
			t.Errorf("%s: install says %v", what, err)
		}
		if left := files(t, to.cfg.Dir); len(left) > 0 || len(to.Segments(2)) > 0 {
			t.Fatalf("%s: left are %v", what, left)
		}
	}
	for at := 0; at < len(data); at += 7 {
		spoilt := slices.Clone(data)
		spoilt[at] ^= 0x10
		refused("flip", seg, spoilt)
	}
	refused("nothing", seg, nil)
	refused("cut short", seg, data[:len(data)-1])
	refused("too long", seg, append(slices.Clone(data), 0))
	for what, change := range map[string]func(*Segment){
		"digest": func(s *Segment) { s.Digest[0]++ }, "range": func(s *Segment) { s.To++ }, "shard": func(s *Segment) { s.Shard++ },
		"messages": func(s *Segment) { s.Messages++ }, "rows": func(s *Segment) { s.Rows++ }, "time": func(s *Segment) { s.MaxTime++ },
	} {
		other := seg
		change(&other)
		refused(what, other, data)
	}
	// A peer that lies: other rows under the right digest, every checksum right.
	b := fleet(2, 5, 9, 3, 8, t0)
	b.Rows[0].Score = 0.75
	e, err := newEncoder()
	if err != nil {
		t.Fatal(err)
	}
	forged, err := e.encode(b, &metadata{Segment: seg})
	if err != nil {
		t.Fatal(err)
	}
	lie := seg
	lie.Bytes = int64(len(forged))
	refused("forged rows", lie, forged)
}

// reseal makes the checksums of a file right, so that what is wrong with it
// reaches the decoders.
func reseal(data []byte) []byte {
	data = slices.Clone(data)
	if len(data) < tailBytes {
		return data
	}
	n, err := footerLength(data[len(data)-tailBytes:], int64(len(data)))
	if err != nil {
		return data
	}
	body := data[:int64(len(data))-tailBytes-n]
	footer := data[len(body) : len(data)-tailBytes]
	m := metadata{Body: int64(len(body))}
	for lo := 0; lo < len(body); lo += blockBytes {
		m.Blocks = append(m.Blocks, checksum(body[lo:min(lo+blockBytes, len(body))]))
	}
	for _, kv := range m.entries() {
		if at := bytes.LastIndex(footer, []byte(keyBlocks+"\x18")); kv.Key == keyBlocks && at >= 0 {
			copy(footer[min(len(footer), at+len(keyBlocks)+2):], kv.Value)
		}
	}
	if at, err := sealAt(footer); err == nil {
		copy(footer[at:], seal(footer, at))
	}
	return data
}

// memory is a file in memory.
type memory struct {
	*bytes.Reader
	io.Writer
}

func (memory) Sync() error                  { return nil }
func (memory) Close() error                 { return nil }
func (m memory) Stat() (os.FileInfo, error) { return size{n: m.Size()}, nil }

type size struct {
	os.FileInfo
	n int64
}

func (s size) Size() int64 { return s.n }

func FuzzDecodeSurvivesForgedFiles(f *testing.F) {
	e, err := newEncoder()
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range []*telemetry.Batch{nasty(), fleet(1, 0, 1, 3, 20, t0), {Shard: 1, To: 1}} {
		data, err := e.encode(b, &metadata{Segment: Segment{Shard: b.Shard, From: b.From, To: b.To, Rows: uint64(len(b.Rows)), Parts: 1}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(slices.Clone(data))
	}
	merged, err := os.ReadFile(mergedFile(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(merged)
	z, err := newZstdDecoder()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(z.Close)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := newSegmentFile(memory{Reader: bytes.NewReader(reseal(data))})
		if err != nil {
			return
		}
		defer s.release()
		c, err := newCursor(s, &decoder{zstd: z})
		if err != nil {
			return
		}
		if (&Store{zstd: z}).verifyRows(t.Context(), &s.meta.Segment, c) != nil {
			return
		}
		rows := uint64(0)
		for i := range c.table.parts {
			rows += c.table.parts[i].Rows
		}
		if rows != s.meta.Rows {
			t.Errorf("%d rows decoded, the footer says %d", rows, s.meta.Rows)
		}
	})
}

// mergedFile is a compacted file of three small flushes.
func mergedFile(t testing.TB) string {
	s := newStore(t)
	for i := range uint64(3) {
		if _, err := s.Write(t.Context(), fleet(1, i, i+1, 3, 4, t0+int64(i)*4e6)); err != nil {
			t.Fatal(err)
		}
	}
	seg, err := s.merge(t.Context(), s.Segments(1))
	if err != nil {
		t.Fatal(err)
	}
	return s.Path(seg)
}
