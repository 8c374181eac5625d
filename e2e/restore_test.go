package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/store/archive"
	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
)

// rowsOf counts what a cluster has of its devices.
func rowsOf(t *testing.T, n *devcluster.Node) (rows uint64) {
	t.Helper()
	cl := clientOf(t, n)
	for d, err := range cl.Devices(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range cl.Readings(t.Context(), client.ReadingsQuery{Device: d.ID, Page: 50_000}) {
			if err != nil {
				t.Fatal(err)
			}
			rows++
		}
	}
	return rows
}

// backup copies the store of a running node until a number of rows is in the copy,
// and opens that.
func backup(t *testing.T, n *devcluster.Node, want uint64) *parquet.Store {
	t.Helper()
	var last error
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		dir := filepath.Join(t.TempDir(), "store")
		if last = os.CopyFS(dir, os.DirFS(filepath.Join(n.Data, "store"))); last != nil {
			continue // a file was renamed meanwhile
		}
		files, err := parquet.Open(slog.New(slog.DiscardHandler), nil, parquet.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if files.Usage().Rows == want {
			t.Cleanup(func() { _ = files.Close() })
			return files
		}
		last = fmt.Errorf("the copy has %d rows, want %d", files.Usage().Rows, want)
		if err := files.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("no complete copy: %v", last)
	return nil
}

// An archive is restored into a cluster with other shards: every row once, though
// the restore is interrupted, with attributes and truth values.
func TestAnArchiveIsRestoredIntoAnotherCluster(t *testing.T) {
	var dir string
	first := start(t, func(o *devcluster.Options) { o.Shards, o.FlushInterval, dir = 5, time.Second, o.Dir })
	fleet, stop := publish(t, first)
	for end := time.Now().Add(time.Minute); acked(fleet) < 1000 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
	}
	stop()
	pump := `{"device_id":"pump","timestamp":"2026-01-23T15:24:46.123456Z","metadata":{"site":"north \"1\""},"sensors":{"t":21.5,"on":true}}`
	if counts, err := clientOf(t, first.Nodes()[0]).Publish(t.Context(), []byte(pump), ""); err != nil || counts.Applied != 1 {
		t.Fatalf("%+v, %v", counts, err)
	}
	rows := rowsOf(t, first.Nodes()[0])
	files := backup(t, first.Nodes()[0], rows)
	if err := first.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	store := s3mem.New()
	if err := store.CreateBucket("telemetry"); err != nil {
		t.Fatal(err)
	}
	s3 := httptest.NewServer(gofakes3.New(store).Server())
	t.Cleanup(s3.Close)
	t.Cleanup(s3.CloseClientConnections)
	bucket, err := archive.NewS3(archive.S3Config{Endpoint: s3.URL, Bucket: "telemetry", Region: "us-east-1", AccessKey: "key", SecretKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bucket.Close)
	archiver, err := archive.New(slog.New(slog.DiscardHandler), nil, archive.Config{
		Prefix: func() string { return "lab/old-cluster/" }, Leads: func(telemetry.ShardID) bool { return true },
	}, files, bucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := archiver.Round(t.Context(), time.Now().Add(72*time.Hour)); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"ENDPOINT": s3.URL, "BUCKET": "telemetry", "REGION": "us-east-1", "PREFIX": "lab", "ACCESS_KEY": "key", "SECRET_KEY": "secret"} {
		t.Setenv("SLUICE_ARCHIVE_"+key, value)
	}

	second := start(t, func(o *devcluster.Options) { o.Shards = 3 })
	n := second.Nodes()[0]
	fails(t, n, "name where the rows are", "archive", "restore")
	fails(t, n, "no segments there", "archive", "restore", "--dir", t.TempDir(), "--work", t.TempDir())
	args := []string{"archive", "restore", "--config", filepath.Join(dir, "n0.yaml"), "--work", filepath.Join(t.TempDir(), "work")}
	interrupted(t, n, args)
	stdout, stderr, code := try(t, append(args, "--api", "http://"+n.HTTP)...)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	total := strings.ReplaceAll(stdout, ",", "")
	wants(t, "restore", total, strconv.FormatUint(rows, 10)+" rows of ")
	judge(t, second, fleet)
	if got := rowsOf(t, n); got != rows {
		t.Errorf("%d rows are there, want %d", got, rows)
	}
	d, err := clientOf(t, n).Device(t.Context(), "pump")
	if err != nil || d.Attributes["site"] != `north "1"` || len(d.Latest) != 2 {
		t.Errorf("pump: %+v, %v", d, err)
	}
	// Done is done.
	if again := succeeds(t, n, args...); strings.Contains(again, " of ") && !strings.Contains(strings.ReplaceAll(again, ",", ""), strconv.FormatUint(rows, 10)+" rows of ") {
		t.Errorf("a second time:\n%s", again)
	}
	if got := rowsOf(t, n); got != rows {
		t.Errorf("%d rows are there after a second restore, want %d", got, rows)
	}
	if err := second.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	restoreIntoADatabase(t, filepath.Join(dir, "n0.yaml"), fleet, rows)
}

// restoreIntoADatabase restores the same archive into a cluster whose store is a
// database, where every row has to be once, too.
func restoreIntoADatabase(t *testing.T, config string, fleet []*bench.Survivor, rows uint64) {
	t.Helper()
	url := pgtest.Start(t, pgtest.Options{}).Database(t)
	const name = "SLUICE_ARCHIVE_ENDPOINT" // a node with a database has no archive
	endpoint := os.Getenv(name)
	t.Setenv(name, "")
	third := start(t, func(o *devcluster.Options) { o.Shards, o.Database = 3, url })
	t.Setenv(name, endpoint)
	n := third.Nodes()[0]
	args := []string{"archive", "restore", "--config", config, "--work", filepath.Join(t.TempDir(), "work")}
	interrupted(t, n, args)
	stdout, stderr, code := try(t, append(args, "--api", "http://"+n.HTTP)...)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	wants(t, "restore into a database", strings.ReplaceAll(stdout, ",", ""), strconv.FormatUint(rows, 10)+" rows of ")
	judge(t, third, fleet)
	awaitFlushed(t, third)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	var all, different uint64
	const sql = "select count(*), count(distinct (device_id, time, sensor)) from telemetry"
	if err := conn.QueryRow(t.Context(), sql).Scan(&all, &different); err != nil {
		t.Fatal(err)
	}
	if all != rows || different != rows {
		t.Errorf("the database has %d rows, %d of them different, want %d", all, different, rows)
	}
}

// interrupted runs a command and ends it at the first line that it prints.
func interrupted(t *testing.T, n *devcluster.Node, args []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append(args, "--api", "http://"+n.HTTP)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Errorf("the restore printed nothing: %v", lines.Err())
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, out)
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
