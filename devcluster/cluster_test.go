package devcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

// binary is the sluice executable, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sluice-devcluster-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "sluice")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/sluice-iot/sluice/cmd/sluice").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build sluice: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir) // of a temporary directory
	os.Exit(code)
}

var discard = slog.New(slog.DiscardHandler)

func options(t *testing.T, dir string) Options {
	t.Helper()
	port, err := FreePorts(6)
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Binary: binary, Dir: dir, Nodes: 3, Zones: []string{"a", "b", "c"},
		MQTTPort: port, HTTPPort: port + 3, Shards: 6, FlushInterval: time.Second,
	}
}

// launch starts a cluster and stops it at the end of the test, if it has not
// been stopped by then.
func launch(t *testing.T, opt Options) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), discard, opt)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Errorf("stop at the end: %v", err)
		}
	})
	awaitReady(t, c)
	return c
}

func awaitReady(t *testing.T, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

func ask(t *testing.T, n *Node) *client.Client {
	t.Helper()
	cl, err := n.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// publish stores one message through n.
func publish(t *testing.T, n *Node, device string, value int) {
	t.Helper()
	counts, err := ask(t, n).Publish(t.Context(), fmt.Appendf(nil, `{"device_id":%q,"timestamp":%d,"sensors":{"v":%d}}`, device, 1_700_000_000+value, value), "")
	if err != nil || counts.Applied != 1 {
		t.Fatalf("publish %d for %s on %s: %+v, %v", value, device, n.ID, counts, err)
	}
}

// stored counts the readings of a device as n knows them.
func stored(t *testing.T, n *Node, device string) int {
	t.Helper()
	got := 0
	for _, err := range ask(t, n).Readings(t.Context(), client.ReadingsQuery{Device: device}) {
		if err != nil {
			t.Fatalf("read %s on %s: %v", device, n.ID, err)
		}
		got++
	}
	return got
}

// alive reports whether a process exists and is no zombie of ours.
func alive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func TestNodesAreListedWithAllThatOthersNeed(t *testing.T) {
	opt := options(t, filepath.Join(t.TempDir(), "data"))
	c := launch(t, opt)
	nodes, err := Load(opt.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 3 {
		t.Fatalf("dev.json lists %d nodes, want 3", len(nodes))
	}
	for i, n := range nodes {
		want := NodeInfo{
			ID: fmt.Sprintf("n%d", i), PID: c.Nodes()[i].PID, Zone: opt.Zones[i], MQTT: loopback(opt.MQTTPort + i), HTTP: loopback(opt.HTTPPort + i),
			Data: filepath.Join(opt.Dir, fmt.Sprintf("n%d", i)), Cmd: n.Cmd,
		}
		got, wanted := fmt.Sprintf("%+v", n), fmt.Sprintf("%+v", want)
		if got != wanted || !alive(n.PID) {
			t.Errorf("dev.json: got %s (alive: %v), want %s", got, alive(n.PID), wanted)
		}
		if !slices.Contains(n.Cmd, binary) {
			t.Errorf("%s is started by %q, which does not name the binary", n.ID, n.Cmd)
		}
		if logs, err := filepath.Glob(filepath.Join(n.Data, "wal", "*.wal")); err != nil || len(logs) == 0 {
			t.Errorf("%s: no log segments (*.wal) below %s: %v", n.ID, n.Data, err)
		}
		conn, err := net.Dial("tcp", n.MQTT)
		if err != nil {
			t.Errorf("%s: no broker: %v", n.ID, err)
			continue
		}
		_ = conn.Close() // a probe
	}
	var raw struct{ Nodes []map[string]any }
	b, err := os.ReadFile(filepath.Join(opt.Dir, "dev.json"))
	if err != nil || json.Unmarshal(b, &raw) != nil || len(raw.Nodes) != 3 {
		t.Fatalf("dev.json: %v\n%s", err, b)
	}
	for _, key := range []string{"id", "pid", "zone", "mqtt", "http", "data", "cmd"} {
		if raw.Nodes[0][key] == nil {
			t.Errorf("dev.json has no %q", key)
		}
	}
	st, err := ask(t, c.Nodes()[2]).Status(t.Context())
	if err != nil || len(st.Nodes) != 3 || len(st.Shards) != 6 || !st.ZoneSafe {
		t.Errorf("status: %v\n%+v", err, st)
	}
}

func TestClusterGoesOnWithoutANodeThatComesBackByItsCommand(t *testing.T) {
	opt := options(t, t.TempDir())
	c := launch(t, opt)
	publish(t, c.Nodes()[0], "d1", 1)
	victim := c.Nodes()[1]
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil { // as a user would, behind our back
		t.Fatal(err)
	}
	select {
	case n := <-c.Exited():
		if n != victim {
			t.Fatalf("%s is said to have died, %s was killed", n.ID, victim.ID)
		}
	case <-time.After(time.Minute):
		t.Fatal("nobody noticed the death of a node")
	}
	if victim.Running() {
		t.Error("the dead node is said to run")
	}
	for i := range 20 {
		publish(t, c.Nodes()[2*(i%2)], "d1", 2+i)
	}
	eventually(t, "the others call it dead", func() bool {
		st, err := ask(t, c.Nodes()[0]).Status(t.Context())
		return err == nil && slices.ContainsFunc(st.Nodes, func(n api.Node) bool { return string(n.ID) == victim.ID && n.State == api.NodeDead })
	})

	// Started by hand, out of dev.json.
	nodes, err := Load(opt.Dir)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nodes[1].Cmd[0], nodes[1].Cmd[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	eventually(t, "the node is ready again", func() bool {
		status, _, _ := victim.readyz(t.Context())
		return status == 200
	})
	publish(t, victim, "d1", 22)
	for _, n := range c.Nodes() {
		if got := stored(t, n, "d1"); got != 22 {
			t.Errorf("%s knows %d readings, want 22", n.ID, got)
		}
	}

	// Stop ends it too, although it is not our child.
	if err := c.Stop(context.Background()); err != nil {
		t.Errorf("stop: %v", err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the node that was started by hand ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the node that was started by hand lives on")
		_ = cmd.Process.Kill()
	}
	for _, n := range c.Nodes() {
		if n.PID > 0 && n != victim && alive(n.PID) {
			t.Errorf("%s (pid %d) lives on", n.ID, n.PID)
		}
	}
}

func TestClusterContinuesOnItsData(t *testing.T) {
	opt := options(t, t.TempDir())
	for round := 1; round <= 3; round++ {
		c, err := Start(t.Context(), discard, opt)
		if err != nil {
			t.Fatalf("start %d: %v", round, err)
		}
		awaitReady(t, c)
		publish(t, c.Nodes()[round%3], "d1", round)
		for _, n := range c.Nodes() {
			if got := stored(t, n, "d1"); got != round {
				t.Errorf("start %d: %s knows %d readings", round, n.ID, got)
			}
		}
		if err := c.Stop(context.Background()); err != nil {
			t.Fatalf("stop %d: %v", round, err)
		}
		for _, n := range c.Nodes() {
			if alive(n.PID) {
				t.Errorf("stop %d: %s lives on", round, n.ID)
			}
		}
	}
}

func TestNodeCanBeKilledAndStartedByATest(t *testing.T) {
	c := launch(t, options(t, t.TempDir()))
	for i, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if n.Running() {
			t.Errorf("%s runs after Kill", n.ID)
		}
		publish(t, c.Nodes()[(i+1)%3], "d1", i)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		awaitReady(t, c)
	}
	select {
	case n := <-c.Exited():
		t.Errorf("%s is reported although its end was asked for", n.ID)
	default:
	}
}

// TestDevStopsCleanly runs the command of the newcomer: Ctrl-C gives exit code 0
// and leaves no process, with a dead node and with simulated devices too.
func TestDevStopsCleanly(t *testing.T) {
	for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(how.String(), func(t *testing.T) {
			dir := t.TempDir()
			port, err := FreePorts(6)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(binary, "dev", "--data", dir, "--simulate", "5", "--shards", "6",
				"--mqtt-port", strconv.Itoa(port), "--http-port", strconv.Itoa(port+3))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			cmd.Stderr = &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			printed := &output{}
			read := make(chan struct{})
			go func() {
				defer close(read)
				_, _ = io.Copy(printed, out) // as far as it goes
			}()
			var nodes []NodeInfo
			eventually(t, "three nodes are ready and simulated devices publish", func() bool {
				if nodes, _ = Load(dir); len(nodes) != 3 {
					return false
				}
				cl, err := client.New(client.Config{URL: "http://" + nodes[0].HTTP, Retries: -1})
				if err != nil {
					return false
				}
				defer cl.Close()
				l, err := cl.Ledger(t.Context())
				return err == nil && l.Totals.Applied >= 10
			})
			if err := syscall.Kill(nodes[2].PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the death of n2 is told with the command that starts it again", func() bool {
				text := printed.String()
				return strings.Contains(text, fmt.Sprintf("n2 (pid %d", nodes[2].PID)) && strings.Contains(text, "node --config")
			})
			if err := cmd.Process.Signal(how); err != nil {
				t.Fatal(err)
			}
			<-read
			if err := cmd.Wait(); err != nil {
				t.Errorf("exit code after %v: %v\n%s%s", how, err, printed.String(), said.String())
			}
			for _, n := range nodes {
				if alive(n.PID) {
					t.Errorf("%s (pid %d) lives on", n.ID, n.PID)
				}
			}
		})
	}
}

// output collects what a process prints while it runs.
type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func TestWhatIsInTheWayIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	taken := l.Addr().(*net.TCPAddr).Port
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	port, directory, empty := options(t, t.TempDir()), options(t, filepath.Join(file, "data")), Options{Nodes: 0, MQTTPort: 0, HTTPPort: 65_537}
	port.MQTTPort = taken
	for _, c := range []struct {
		opt  Options
		want []string
	}{
		{port, []string{strconv.Itoa(taken), "in use", "--mqtt-port"}},
		{directory, []string{"create directory", "--data"}},
		{empty, []string{"nodes is 0", "zones is empty", "mqtt-port is 0", "http-port"}},
	} {
		_, err := Start(t.Context(), discard, c.opt)
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("got %v, want %q in it", err, w)
			}
		}
	}
	if _, err := Load(t.TempDir()); err == nil || !strings.Contains(err.Error(), "sluice dev --data") {
		t.Errorf("load of nothing: %v", err)
	}
}

// TestBrokenNodeEndsTheStart: what cannot start is named with its last words,
// and nothing is left running.
func TestBrokenNodeEndsTheStart(t *testing.T) {
	opt := options(t, t.TempDir())
	if err := os.WriteFile(filepath.Join(opt.Dir, "n1"), []byte("not a directory"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), discard, opt)
	if err == nil || !strings.Contains(err.Error(), "n1 does not start") {
		t.Fatalf("got %v", err)
	}
	nodes, err := Load(opt.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.PID > 0 && alive(n.PID) {
			t.Errorf("%s (pid %d) lives on", n.ID, n.PID)
		}
	}
}
