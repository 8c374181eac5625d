package parquet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestReadsSeeExactlyTheFlushedWhileOthersWrite(t *testing.T) {
	s, err := Open(quiet(), prometheus.NewRegistry(), Config{Dir: filepath.Join(t.TempDir(), "store"), OpenFilesMax: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const shards, flushes = 3, 25
	var flushed [shards]atomic.Uint64
	var models [shards]model
	for shard := range models {
		for i := range uint64(flushes) {
			models[shard].batches = append(models[shard].batches, fleet(telemetry.ShardID(shard), i, i+1, 3, 10, t0+int64(i)*7e6))
		}
	}
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for shard := range models {
		for twice := range 2 { // two writers flush the same ranges
			wg.Go(func() {
				for _, b := range models[shard].batches {
					if _, err := s.Write(t.Context(), b); err != nil {
						errs <- fmt.Errorf("write: %w", err)
					}
					if twice == 0 {
						flushed[shard].Store(b.To)
					}
				}
			})
		}
		wg.Go(func() {
			for flushed[shard].Load() < flushes {
				upTo := flushed[shard].Load()
				q := everything("sensor-00001")
				q.Limit = 1 + int(upTo)*17
				got, covered, err := s.Read(t.Context(), telemetry.ShardID(shard), upTo, q)
				if err != nil {
					errs <- fmt.Errorf("read: %w", err)
					return
				}
				if covered < upTo || !samePoints(got, models[shard].read(q, covered)) {
					errs <- fmt.Errorf("read of shard %d up to %d gives other rows", shard, upTo)
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

// TestReadsAndFetchesSurviveRemovals runs queries, fetches, verifications and
// loads against a shard whose segments come and go.
func TestReadsAndFetchesSurviveRemovals(t *testing.T) {
	s := newStore(t)
	b := fleet(1, 0, 1, 3, 10, t0)
	seg, err := s.Write(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	data := fetch(t, s, seg)
	want := (&model{batches: []*telemetry.Batch{b}}).read(everything("sensor-00001"), 1)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	gone := func(err error) bool {
		return err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, store.ErrUnavailable)
	}
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, _, err := s.Read(t.Context(), 1, 1, everything("sensor-00001"))
				if !gone(err) || (err == nil && !samePoints(got, want)) {
					t.Errorf("read: %d points, %v", len(got), err)
				}
				if r, _, err := s.Open(1, 0, 1); err == nil {
					all, rerr := io.ReadAll(r)
					if rerr != nil || !bytes.Equal(all, data) {
						t.Errorf("fetch: %d bytes, %v", len(all), rerr)
					}
					r.Close()
				} else if !gone(err) {
					t.Errorf("open: %v", err)
				}
				if err := s.Verify(t.Context(), seg); !gone(err) {
					t.Errorf("verify: %v", err)
				}
				if _, err := s.Load(t.Context(), seg); !gone(err) {
					t.Errorf("load: %v", err)
				}
			}
		})
	}
	for i := range 60 {
		if i%2 == 0 {
			err = s.Drop(1)
		} else {
			err = s.SetAside(t.Context(), seg, errors.New("test"))
		}
		if err != nil {
			t.Errorf("remove: %v", err)
		}
		if err := s.Install(t.Context(), seg, bytes.NewReader(data)); err != nil {
			t.Errorf("install: %v", err)
		}
	}
	close(stop)
	wg.Wait()
}

// countingDisk counts the files that are open.
type countingDisk struct {
	osDisk
	opened, most atomic.Int64
}

type countedFile struct {
	file
	disk *countingDisk
}

func (d *countingDisk) open(path string) (file, error) {
	f, err := d.osDisk.open(path)
	if err != nil {
		return nil, err
	}
	n := d.opened.Add(1)
	for most := d.most.Load(); n > most && !d.most.CompareAndSwap(most, n); most = d.most.Load() {
	}
	return countedFile{file: f, disk: d}, nil
}

func (f countedFile) Close() error {
	f.disk.opened.Add(-1)
	return f.file.Close()
}

func TestQueryOverManyFilesKeepsFewOpen(t *testing.T) {
	d := &countingDisk{}
	s, err := openStore(quiet(), nil, Config{Dir: filepath.Join(t.TempDir(), "store"), OpenFilesMax: 3}, d)
	if err != nil {
		t.Fatal(err)
	}
	var m model
	for i := range uint64(40) { // all of the same time: every page waits for its turn
		b := fleet(1, i, i+1, 2, 5, t0+int64(i))
		if _, err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		m.batches = append(m.batches, b)
	}
	q := everything("sensor-00001")
	got, _, err := s.Read(t.Context(), 1, 40, q)
	if err != nil || !samePoints(got, m.read(q, 40)) {
		t.Errorf("read: %d points, %v", len(got), err)
	}
	if most := d.most.Load(); most > 4 { // the cache's and the one being opened
		t.Errorf("%d files were open at once, the cache holds 3", most)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left := d.opened.Load(); left != 0 {
		t.Errorf("%d files are open after close", left)
	}
}

func TestClosedStoreRefusesCalls(t *testing.T) {
	s := newStore(t)
	seg, err := s.Write(t.Context(), fleet(1, 0, 1, 1, 1, t0))
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := s.Open(1, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); err != nil || int64(len(data)) != seg.Bytes {
		t.Errorf("stream after close: %d bytes, %v", len(data), err)
	}
	r.Close()
	_, werr := s.Write(t.Context(), fleet(1, 1, 2, 1, 1, t0))
	_, _, rerr := s.Read(t.Context(), 1, 1, everything("a"))
	_, _, oerr := s.Open(1, 0, 1)
	for _, err := range []error{werr, rerr, oerr, s.Verify(t.Context(), seg), s.Drop(1), s.Install(t.Context(), seg, nil)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	}
}
