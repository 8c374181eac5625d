package e2e

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
)

// Real data goes in by `sluice import` and comes out by the HTTP API, value by
// value.

// data opens a file of real data, or skips the test.
func data(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("SLUICE_DATA")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "data")
	}
	path := filepath.Join(dir, filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no %s: set SLUICE_DATA to a folder with C-MAPSS (cmapss/) and AMPds2 (ampds2/)", path)
	}
	return path
}

// gunzip returns the first lines of a file, all for 0.
func gunzip(t *testing.T, path string, lines int) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // read only
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for sc := bufio.NewScanner(z); sc.Scan() && (lines == 0 || len(out) < lines); {
		out = append(out, sc.Text())
	}
	return out
}

// sluice runs the binary and returns what it says.
func sluice(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("sluice %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// point is one expected reading.
type point struct {
	micros int64
	sensor string
}

// sameReadings compares all readings of a device, bit by bit.
func sameReadings(t *testing.T, n *devcluster.Node, device string, want map[point]float64) {
	t.Helper()
	cl := clientOf(t, n)
	got := 0
	for r, err := range cl.Readings(t.Context(), client.ReadingsQuery{Device: device, Page: 50_000}) {
		if err != nil {
			t.Fatalf("read %s on %s: %v", device, n.ID, err)
		}
		got++
		w, ok := want[point{int64(r.Time), r.Sensor}]
		if !ok || w != float64(r.Value) {
			t.Fatalf("%s on %s: reading %s %s %v, want %v (known: %v)", device, n.ID, r.Time, r.Sensor, r.Value, w, ok)
		}
	}
	if got != len(want) {
		t.Fatalf("%s on %s: %d readings, want %d", device, n.ID, got, len(want))
	}
}

// applied is the ledger's count of messages that brought something new.
func applied(t *testing.T, n *devcluster.Node) uint64 {
	t.Helper()
	l, err := clientOf(t, n).Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if l.Totals.Received != l.Totals.Refused+l.Totals.Quarantined+l.Totals.Duplicate+l.Totals.Applied {
		t.Errorf("ledger does not add up: %+v", l.Totals)
	}
	return l.Totals.Applied
}

func TestEveryValueOfCMAPSSIsReadBackEqual(t *testing.T) {
	path := data(t, "cmapss/train_FD001.txt.gz")
	c := start(t)
	columns := []string{"unit", "cycle", "setting1", "setting2", "setting3"}
	for i := 1; i <= 21; i++ {
		columns = append(columns, fmt.Sprintf("s%d", i))
	}
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	want := map[string]map[point]float64{}
	lines := gunzip(t, path, 0)
	for _, l := range lines {
		f := strings.Fields(l)
		device := "engine-" + f[0]
		cycle, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		at := base.Add(time.Duration(cycle) * time.Minute).UnixMicro()
		if want[device] == nil {
			want[device] = map[point]float64{}
		}
		for i := 2; i < len(columns); i++ {
			want[device][point{at, columns[i]}] = parse(t, f[i])
		}
	}
	if len(lines) != 20_631 || len(want) != 100 {
		t.Fatalf("%d lines of %d engines, want 20631 of 100", len(lines), len(want))
	}
	t.Log(sluice(t, "import", path, "--api", "http://"+c.Nodes()[1].HTTP, "--state", filepath.Join(t.TempDir(), "state"),
		"--no-header", "--columns", strings.Join(columns, ","), "--device", "engine-{unit}", "--time", "cycle",
		"--time-base", base.Format(time.RFC3339), "--time-step", "1m", "--strict"))
	i := 0
	for device, w := range want {
		sameReadings(t, c.Nodes()[i%3], device, w)
		i++
	}
	if n := applied(t, c.Nodes()[0]); n != 20_631 {
		t.Errorf("%d messages are applied, want 20631", n)
	}
}

func parse(t *testing.T, cell string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(cell, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// monthLines are 30 days of minutes and the header.
const monthLines = 30*24*60 + 1

// month writes a month of a meter and returns what should be read back.
func month(t *testing.T, name string) (path string, want map[point]float64) {
	t.Helper()
	lines := gunzip(t, data(t, name), monthLines)
	path = filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(name), ".gz"))
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	want = map[point]float64{}
	for _, l := range lines[1:] {
		f := strings.Split(l, ",")
		at, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		for i, sensor := range []string{"counter", "avg_rate", "inst_rate"} {
			want[point{at * 1_000_000, sensor}] = parse(t, f[i+1])
		}
	}
	return path, want
}

func TestAMonthOfTwoMetersIsReadBackEqual(t *testing.T) {
	gas, wantGas := month(t, "ampds2/NaturalGas_FRG.csv.gz")
	water, wantWater := month(t, "ampds2/Water_WHW.csv.gz")
	c := start(t)
	api := "http://" + c.Nodes()[0].HTTP
	t.Log(sluice(t, "import", gas, "--api", api, "--device-id", "gas", "--strict"))
	t.Log(sluice(t, "import", water, "--api", api, "--device-id", "water", "--batch", "50", "--strict"))
	for _, n := range c.Nodes() {
		sameReadings(t, n, "gas", wantGas)
		sameReadings(t, n, "water", wantWater)
	}
	if n := applied(t, c.Nodes()[2]); n != 2*(monthLines-1) {
		t.Errorf("%d messages are applied, want %d", n, 2*(monthLines-1))
	}
	if again := sluice(t, "import", gas, "--api", api, "--device-id", "gas"); !strings.Contains(again, "imported already") {
		t.Errorf("the same import again says %q", again)
	}
}

// TestInterruptedImportStoresNothingTwice ends imports by Ctrl-C and by kill -9
// and lets each go on; a node dies in between too.
func TestInterruptedImportStoresNothingTwice(t *testing.T) {
	path, want := month(t, "ampds2/Water_WHW.csv.gz")
	c := start(t)
	state := path + ".sluice-import"
	args := []string{"import", path, "--api", "http://" + c.Nodes()[0].HTTP, "--device-id", "water", "--in-flight", "200"}
	for i, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		interrupt(t, args, state, int64(i+1)*6000, how)
	}
	if err := c.Nodes()[2].Kill(); err != nil {
		t.Fatal(err)
	}
	interrupt(t, args, state, 32_000, syscall.SIGKILL)
	if err := c.Nodes()[2].Start(); err != nil {
		t.Fatal(err)
	}
	t.Log(sluice(t, args...))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes() {
		sameReadings(t, n, "water", want)
	}
	if n := applied(t, c.Nodes()[0]); n != monthLines-1 {
		t.Errorf("%d messages are applied, want %d", n, monthLines-1)
	}
}

// interrupt runs an import until its state file has reached a line.
func interrupt(t *testing.T, args []string, state string, line int64, how syscall.Signal) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = io.Discard, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); stateLine(state) < line; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("import does not reach line %d: %s", line, said.String())
		}
	}
	if err := cmd.Process.Signal(how); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatalf("interrupted with %v, the exit code is 0", how)
	}
	if how != syscall.SIGKILL && !strings.Contains(said.String(), "run the same command again") {
		t.Errorf("interrupted with %v, it says %q", how, said.String())
	}
	if l := stateLine(state); l < line || l >= monthLines {
		t.Fatalf("the state file is at line %d after the interruption at line %d of %d", l, line, monthLines)
	}
}

// stateLine is -1 until there is a state file.
func stateLine(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	var st struct {
		Line int64 `json:"line"`
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return -1
	}
	return st.Line
}
