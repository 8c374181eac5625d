package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/minio/minio-go/v7"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// server is an S3 server with an empty bucket.
func server(t *testing.T) *S3 {
	t.Helper()
	ts := httptest.NewServer(gofakes3.New(s3mem.New()).Server())
	t.Cleanup(ts.Close)
	t.Cleanup(func() { ts.CloseClientConnections() })
	s, err := NewS3(S3Config{Endpoint: ts.URL, Bucket: "telemetry", Region: "us-east-1", AccessKey: "key", SecretKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.client.MakeBucket(t.Context(), "telemetry", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return s
}

const t0 = int64(1_769_126_400_000_000) // a midnight

// batch is a flush of one log entry, received in its hour.
func batch(shard telemetry.ShardID, i int) *telemetry.Batch {
	b := &telemetry.Batch{Shard: shard, From: uint64(i), To: uint64(i + 1), Messages: 10, Devices: []string{"a", "b"}, Sensors: []string{"s"}}
	for d := range uint32(2) {
		for k := range int64(5) {
			at := t0 + int64(i)*3600e6 + k*1e6
			b.Rows = append(b.Rows, telemetry.Row{Device: d, Time: at, Received: at, Value: float64(i) + float64(k)/10})
		}
	}
	return b
}

func open(t *testing.T) *parquet.Store {
	t.Helper()
	s, err := parquet.Open(quiet(), nil, parquet.Config{Dir: filepath.Join(t.TempDir(), "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func write(t *testing.T, s *parquet.Store, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		for shard := range telemetry.ShardID(2) {
			if _, err := s.Write(t.Context(), batch(shard, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func compact(t *testing.T, s *parquet.Store) {
	t.Helper()
	for did := true; did; {
		var err error
		if did, err = s.Compact(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// fill makes a store of what is in the bucket.
func fill(t *testing.T, s *S3) *parquet.Store {
	t.Helper()
	keys, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, k := range keys {
		o, err := s.client.GetObject(t.Context(), s.bucket, k, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(o)
		err = errors.Join(err, o.Close())
		path := filepath.Join(dir, "store", strings.TrimPrefix(k, "site/"))
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := parquet.Open(quiet(), nil, parquet.Config{Dir: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = again.Close() })
	return again
}

func TestArchiveIsAStoreOfItsOwn(t *testing.T) {
	bucket, files, replica := server(t), open(t), open(t)
	now := func(hours int) time.Time { return time.UnixMicro(t0 + int64(hours)*3600e6) }
	led := true
	make := func(f Files) *Archiver {
		a, err := New(quiet(), nil, Config{Prefix: func() string { return "site/" }, Leads: func(telemetry.ShardID) bool { return led }}, f, bucket)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	// A day is over, the second has begun: the first is copied.
	write(t, files, 0, 30)
	if err := make(files).Round(t.Context(), now(30)); err != nil {
		t.Fatal(err)
	}
	if got := fill(t, bucket).Missing(0, 24); got != nil {
		t.Fatalf("the archive lacks %v", got)
	}
	// Another replica leads, which has compacted otherwise, and copies the rest.
	write(t, replica, 0, 80)
	compact(t, replica)
	if err := make(replica).Round(t.Context(), now(80)); err != nil {
		t.Fatal(err)
	}
	copied := fill(t, bucket)
	for shard := range telemetry.ShardID(2) {
		if got := copied.Missing(shard, 72); got != nil {
			t.Errorf("the archive lacks %v of shard %d", got, shard)
		}
		for _, seg := range copied.Segments(shard) {
			if err := copied.Verify(t.Context(), seg); err != nil {
				t.Error(err)
			}
		}
		points, _, err := copied.Read(t.Context(), shard, 72, store.Query{Device: "b", From: t0, To: t0 + 1e15, Limit: 10_000})
		if err != nil || len(points) != 72*5 {
			t.Errorf("%d points in the archive, want %d: %v", len(points), 72*5, err)
		}
	}
	if u := copied.Usage(); u.Rows != 2*72*10 {
		t.Errorf("the archive holds %+v", u)
	}
	// Nothing is copied twice, nor by who does not lead.
	before, err := bucket.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	led = false
	write(t, files, 30, 130)
	if err := make(files).Round(t.Context(), now(130)); err != nil {
		t.Fatal(err)
	}
	led = true
	if err := make(replica).Round(t.Context(), now(80)); err != nil {
		t.Fatal(err)
	}
	if after, err := bucket.List(t.Context(), ""); err != nil || !slices.Equal(before, after) {
		t.Errorf("objects were %v, are %v, %v", before, after, err)
	}
}

// broken fails at its n-th put.
type broken struct {
	Bucket
	left int
}

func (b *broken) Put(ctx context.Context, key string, body io.Reader, size int64) error {
	if b.left--; b.left < 0 {
		return errors.New("no route to host")
	}
	return b.Bucket.Put(ctx, key, body, size)
}

func TestRoundsContinueWhereOneFailed(t *testing.T) {
	bucket, files := server(t), open(t)
	write(t, files, 0, 30)
	for n := 0; ; n++ {
		a, err := New(quiet(), nil, Config{Prefix: func() string { return "site/" }, Leads: func(telemetry.ShardID) bool { return true }}, files, &broken{bucket, 7})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Round(t.Context(), time.UnixMicro(t0+30*3600e6)); err == nil {
			break
		}
		if n > 20 {
			t.Fatal("it never ends")
		}
	}
	if got := fill(t, bucket).Missing(1, 24); got != nil {
		t.Errorf("the archive lacks %v", got)
	}
}

// TestRowsThatExpireUncopiedAreTold: an archive that was away for longer than the
// retention lacks rows, which is said once, and gets all the others.
func TestRowsThatExpireUncopiedAreTold(t *testing.T) {
	bucket := server(t)
	files, err := parquet.Open(quiet(), nil, parquet.Config{Dir: filepath.Join(t.TempDir(), "store"), Retention: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	write(t, files, 0, 60)
	now := time.UnixMicro(t0 + 60*3600e6)
	for _, shard := range files.Shards() {
		if did, err := files.Expire(t.Context(), shard, now); err != nil || !did {
			t.Fatalf("shard %d: expired %v, %v", shard, did, err)
		}
	}
	flaky := &broken{bucket, 0}
	a, err := New(quiet(), nil, Config{Prefix: func() string { return "site/" }, Leads: func(telemetry.ShardID) bool { return true }}, files, flaky)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Round(t.Context(), now); err == nil {
		t.Fatal("an archive that is away is no error")
	}
	if c, at := testutil.ToFloat64(a.metrics.expired), testutil.ToFloat64(a.metrics.complete); c != 2 || at != 0 {
		t.Errorf("%v ranges are told to have expired, want that of each shard; complete at %v", c, at)
	}
	flaky.left = 1000
	for range 2 {
		if err := a.Round(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	if c, at := testutil.ToFloat64(a.metrics.expired), testutil.ToFloat64(a.metrics.complete); c != 2 || at != float64(now.Unix()) {
		t.Errorf("%v ranges are told, want each once; complete at %v, want %d", c, at, now.Unix())
	}
	keys, err := bucket.List(t.Context(), "site/")
	if err != nil || len(keys) == 0 {
		t.Errorf("%d objects, %v", len(keys), err)
	}
}

func TestBadConfigurationIsExplained(t *testing.T) {
	for _, c := range []struct {
		cfg  S3Config
		want string
	}{
		{S3Config{Endpoint: "s3.example.net", Bucket: "b", AccessKey: "a", SecretKey: "s"}, "https://HOST"},
		{S3Config{Endpoint: "https://s3.example.net", AccessKey: "a", SecretKey: "s"}, "bucket is empty"},
		{S3Config{Endpoint: "https://s3.example.net", Bucket: "b"}, "access key"},
	} {
		if _, err := NewS3(c.cfg); err == nil || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
}
