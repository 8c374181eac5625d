package e2e

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
)

// binary is the sluice executable, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sluice-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "sluice")
	out, err := exec.Command("go", "build", "-o", binary, "github.com/sluice-iot/sluice/cmd/sluice").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build sluice: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir) // of a temporary directory
	os.Exit(code)
}

// start runs a cluster for one test and stops it at its end.
func start(t *testing.T, change ...func(*devcluster.Options)) *devcluster.Cluster {
	t.Helper()
	dir := t.TempDir()
	port, err := devcluster.FreePorts(6)
	if err != nil {
		t.Fatal(err)
	}
	opt := devcluster.Options{
		Binary: binary, Dir: dir, Nodes: 3, Zones: []string{"a", "b", "c"}, MQTTPort: port, HTTPPort: port + 3,
		Shards: 24, FlushInterval: 2 * time.Second,
	}
	for _, f := range change {
		f(&opt)
	}
	c, err := devcluster.Start(t.Context(), slog.New(slog.NewTextHandler(io.Discard, nil)), opt)
	if err != nil {
		t.Fatalf("start cluster: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Errorf("stop cluster: %v", err)
		}
		if t.Failed() {
			keepLogs(t, dir)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatalf("wait for cluster: %v", err)
	}
	return c
}

// keepLogs shows the ends of the nodes' logs of a failed test.
func keepLogs(t *testing.T, dir string) {
	logs, err := filepath.Glob(filepath.Join(dir, "n*.log"))
	if err != nil {
		t.Error(err)
	}
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		t.Logf("%s ends:\n%s", filepath.Base(name), b[max(0, len(b)-3000):])
	}
}

func mqttAddrs(c *devcluster.Cluster) []string {
	var out []string
	for _, n := range c.Nodes() {
		out = append(out, n.MQTT)
	}
	return out
}

// readings reads everything of a device through one node.
func readings(ctx context.Context, n *devcluster.Node, device string) ([]bench.Stored, error) {
	cl, err := n.Client()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	var out []bench.Stored
	for r, err := range cl.Readings(ctx, client.ReadingsQuery{Device: device}) {
		if err != nil {
			return nil, err
		}
		out = append(out, bench.Stored{Time: time.UnixMicro(int64(r.Time)).UTC(), Sensor: r.Sensor, Value: float64(r.Value)})
	}
	return out, nil
}
