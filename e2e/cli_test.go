package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/devcluster"
)

// The commands of operators and readers against a live cluster; package main
// tests their arguments and their tables.

// try runs the binary and returns stdout, stderr and exit code.
func try(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// succeeds runs a command that says nothing on stderr.
func succeeds(t *testing.T, n *devcluster.Node, args ...string) string {
	t.Helper()
	stdout, stderr, code := try(t, append(args, "--api", "http://"+n.HTTP)...)
	if code != 0 || stderr != "" {
		t.Fatalf("sluice %s: exit code %d, stderr %q, stdout\n%s", strings.Join(args, " "), code, stderr, stdout)
	}
	return stdout
}

func wants(t *testing.T, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: no %q in\n%s", what, w, got)
		}
	}
}

// fails runs a command that must end with exit code 1 and one line.
func fails(t *testing.T, n *devcluster.Node, want string, args ...string) {
	t.Helper()
	stdout, stderr, code := try(t, append(args, "--api", "http://"+n.HTTP)...)
	if code != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, want) {
		t.Errorf("sluice %s: exit code %d, stdout %q, stderr %q, want %q in it", strings.Join(args, " "), code, stdout, stderr, want)
	}
}

func TestCommandsOfReadersAndOperators(t *testing.T) {
	c := start(t)
	a, b, third := c.Nodes()[0], c.Nodes()[1], c.Nodes()[2]
	file := filepath.Join(t.TempDir(), "m.ndjson")
	lines := `{"device_id":"pump-7","timestamp":"2026-01-23T15:24:46.123456Z","sensors":{"temperature":21.52,"door":true},"metadata":{"firmware_version":"1.2.3"}}
{"device_id":"pump-7","timestamp":"2026-01-23T15:24:47.123456Z","sensors":{"temperature":21.53}}
{"device_id":"pump-8","timestamp":"2026-01-23T15:24:47.123456Z","sensors":{"temperature":21.53}}
`
	if err := os.WriteFile(file, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	wants(t, "import", succeeds(t, a, "import", file, "--state", "none"), "3 lines, 3 messages acknowledged, 4 readings")

	wants(t, "status", succeeds(t, b, "status"), "n0    a     alive", "n2    c     alive", "shards: 24, all with a leader", "received 3 = refused 0 + quarantined 0 + duplicate 0 + applied 3")
	var status struct {
		api.Status
		Ledger api.Ledger `json:"ledger"`
	}
	if err := json.Unmarshal([]byte(succeeds(t, b, "status", "--json")), &status); err != nil || len(status.Nodes) != 3 || len(status.Shards) != 24 || status.Ledger.Totals.Applied != 3 {
		t.Errorf("status --json: %v\n%+v", err, status)
	}
	if out := succeeds(t, third, "shards"); strings.Count(out, "\n") != 25 {
		t.Errorf("shards:\n%s", out)
	}
	wants(t, "nodes", succeeds(t, third, "nodes"), a.MQTT, b.HTTP, "LEADS")

	wants(t, "query", succeeds(t, b, "query", "pump-7"), "2026-01-23T15:24:46.123456Z  door             1  0.000  warm-up,bool", "temperature  21.53")
	if out := succeeds(t, b, "query", "pump-7", "--format", "csv", "--sensor", "temperature", "--from", "2026-01-23T15:24:47Z"); out != "time,sensor,value,score,quality\n2026-01-23T15:24:47.123456Z,temperature,21.53,0,4\n" {
		t.Errorf("query as CSV:\n%s", out)
	}
	var list api.ReadingList
	if err := json.Unmarshal([]byte(succeeds(t, third, "query", "pump-7", "--format", "json", "--limit", "0")), &list); err != nil || len(list.Readings) != 3 {
		t.Errorf("query as JSON: %v, %+v", err, list)
	}
	if stdout, stderr, code := try(t, "query", "pump-7", "--limit", "1", "--format", "csv", "--api", "http://"+a.HTTP); code != 0 || strings.Count(stdout, "\n") != 2 || !strings.Contains(stderr, "there is more") {
		t.Errorf("query with a limit: exit code %d, %q, %q", code, stdout, stderr)
	}
	if out := succeeds(t, a, "query", "pump-7", "--from", "1h"); strings.Count(out, "\n") != 1 {
		t.Errorf("query of a time without readings:\n%s", out)
	}
	fails(t, a, "nobody", "query", "nobody")
	wants(t, "device list", succeeds(t, third, "device", "list"), "pump-7", "pump-8")
	wants(t, "device show", succeeds(t, third, "device", "show", "pump-7"), "firmware_version  1.2.3", "21.53")
	fails(t, a, "nobody", "device", "show", "nobody")
	fails(t, a, "already", "cluster", "init", "--shards", "24")
	fails(t, a, "n9", "drain", "n9")
}

func TestQuarantineByCommand(t *testing.T) {
	c := start(t)
	a, b := c.Nodes()[0], c.Nodes()[1]
	if counts, err := clientOf(t, a).Publish(t.Context(), []byte(`{"device_id":"q1","timestamp":"2026-01-23T15:24:46Z","sensors":{"t":[1]}}`+"\n"+`{"device_id":"q1","sensors":{"ok":1}}`), ""); err != nil || counts.Quarantined != 1 {
		t.Fatalf("%+v, %v", counts, err)
	}
	var q api.Quarantined
	if err := json.Unmarshal([]byte(succeeds(t, b, "quarantine", "list", "--json")), &q); err != nil {
		t.Fatal(err)
	}
	wants(t, "quarantine list", succeeds(t, b, "quarantine", "list"), q.ID, "q1", `{"device_id":"q1"`)
	fixed := filepath.Join(t.TempDir(), "fixed.json")
	if err := os.WriteFile(fixed, []byte(`{"device_id":"q1","timestamp":"2026-01-23T15:24:46Z","sensors":{"t":1}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	wants(t, "replay", succeeds(t, b, "quarantine", "replay", q.ID, "--payload", fixed), "1 applied")
	if out := succeeds(t, a, "quarantine", "list"); strings.Count(out, "\n") != 1 {
		t.Errorf("quarantine is not empty:\n%s", out)
	}
	fails(t, a, q.ID, "quarantine", "drop", q.ID)
}

func TestAnomaliesAreFollowed(t *testing.T) {
	c := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), eventuallyMax)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "anomalies", "--follow", "--json", "--api", "http://"+c.Nodes()[2].HTTP)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	events := json.NewDecoder(out)
	eventually(t, "it listens", func() bool { return metric(t, c.Nodes()[2], "sluice_api_streams") == 1 }) // an event from before is not followed
	var b strings.Builder
	b.WriteString("ts,v\n")
	for i := range 1500 {
		v := 20 + float64((i*7919)%100)/100
		if i > 1200 && i < 1220 {
			v = 90
		}
		b.WriteString(time.Unix(1_700_000_000+int64(60*i), 0).UTC().Format(time.RFC3339) + "," + jsonNumber(v) + "\n")
	}
	file := filepath.Join(t.TempDir(), "v.csv")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	succeeds(t, c.Nodes()[0], "import", file, "--device-id", "hot", "--state", "none")
	var first struct {
		Event   string
		Anomaly api.Anomaly
	}
	if err := events.Decode(&first); err != nil || first.Event != "opened" || first.Anomaly.DeviceID != "hot" {
		t.Errorf("followed %+v, %v", first, err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for err == nil { // read what is left, or Wait could block
		err = events.Decode(&first)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("Ctrl-C ends --follow with %v", err)
	}
	wants(t, "anomalies", succeeds(t, c.Nodes()[1], "anomalies", "--device", "hot"), "hot", "90")
}

func jsonNumber(f float64) string {
	b, _ := json.Marshal(f) // a finite number
	return string(b)
}

func TestSimulatedDevicesByCommand(t *testing.T) {
	c := start(t)
	out := succeeds(t, c.Nodes()[1], "simulate", "--devices", "50", "--interval", "200ms", "--duration", "3s", "--prefix", "lab-", "--seed", "7")
	wants(t, "simulate", out, "over 50 connections", "acknowledged; latency p50")
	devices := succeeds(t, c.Nodes()[0], "device", "list")
	if n := strings.Count(devices, "lab-"); n != 50 {
		t.Errorf("%d devices are known, want 50:\n%s", n, devices)
	}
}

func TestLogOfAStoppedNodeIsVerified(t *testing.T) {
	c := start(t)
	var lines []byte
	for i := range 500 {
		lines = fmt.Appendf(lines, `{"device_id":"d%d","timestamp":1700000000,"sensors":{"v":1}}`+"\n", i)
	}
	if counts, err := clientOf(t, c.Nodes()[0]).Publish(t.Context(), lines, ""); err != nil || counts.Applied != 500 {
		t.Fatalf("%+v, %v", counts, err)
	}
	n := c.Nodes()[1]
	if _, stderr, code := try(t, "wal", "verify", n.Data); code != 1 || !strings.Contains(stderr, "stop the node first") {
		t.Errorf("the log of a running node: exit code %d, %s", code, stderr)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := try(t, "wal", "verify", n.Data)
	if code != 0 || !strings.Contains(out, "all good") {
		t.Fatalf("after kill -9: exit code %d, %s%s", code, out, stderr)
	}
	if out, _, code := try(t, "wal", "stat", n.Data); code != 0 || !strings.Contains(out, "meta group") {
		t.Errorf("stat: exit code %d\n%s", code, out)
	}
	if out, _, code := try(t, "wal", "dump", n.Data, "--group", "0"); code != 0 || !strings.Contains(out, "group 0 entry 1 ") || strings.Contains(out, "group 1 ") {
		t.Errorf("dump: exit code %d\n%.300s", code, out)
	}
	damage(t, n.Data)
	out, stderr, code = try(t, "wal", "verify", n.Data)
	if code != 1 || !strings.Contains(out, "DAMAGE") || !strings.Contains(stderr, "damaged") {
		t.Errorf("damaged: exit code %d, %s%s", code, out, stderr)
	}
}

// damage changes eight bytes in the middle of the written part of the first segment:
// up to seven may be the padding of a record, which nobody reads.
func damage(t *testing.T, data string) {
	t.Helper()
	out := sluice(t, "wal", "stat", data, "--json")
	var st struct {
		Segments []struct {
			Name string
			Used int64
		}
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil || len(st.Segments) == 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.OpenFile(filepath.Join(data, "wal", st.Segments[0].Name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	at := st.Segments[0].Used / 2
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x40
	}
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
