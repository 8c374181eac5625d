package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/node"
)

// asSluice makes the test binary behave as sluice: exit codes and streams are
// those of a real process.
const asSluice = "TEST_AS_SLUICE"

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) {
	if os.Getenv(asSluice) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// sluice runs a command.
func sluice(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), asSluice+"=1")
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// golden compares with a file below testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}

func temp(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestErrorsAreOneLineThatNamesTheRemedy(t *testing.T) {
	csv := temp(t, "m.csv", "ts,v\n1,2\n")
	config := temp(t, "bad.yaml", "node:\n  id: n0\n  zone: a\n  data: x\n  colour: blue\n")
	valid := "node:\n  id: n0\n  zone: a\n  data: x\ncluster:\n  secret: 0123456789abcdef\nmqtt:\n"
	deaf := temp(t, "deaf.yaml", valid+"  listen: ''\n")
	tlsless := temp(t, "tlsless.yaml", valid+"  tls: {listen: '127.0.0.1:8883', client_auth: required}\n  proxy_from: [ten/8]\n")
	short := temp(t, "short.yaml", "node:\n  id: n0\n  zone: a\n  data: x\ncluster:\n  secret: short\nmqtt:\n  listen: nowhere\n")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"frobnicate"}, []string{"frobnicate", "--help"}},
		{[]string{}, []string{"expected one of", "--help"}},
		{[]string{"status", "--colour"}, []string{"--colour"}},
		{[]string{"node"}, []string{"--config"}},
		{[]string{"node", "--config", csv + "x"}, []string{"no such file"}},
		{[]string{"query"}, []string{"<device>"}},
		{[]string{"query", "d", "--from", "yesterday"}, []string{"from", "yesterday", "RFC 3339"}},
		{[]string{"query", "d", "--to", "1h30"}, []string{"to:", "1h30"}},
		{[]string{"query", "d", "--limit", "-1"}, []string{"limit"}},
		{[]string{"query", "d", "--format", "xml"}, []string{"table", "json", "csv"}},
		{[]string{"status", "--api", "localhost:8080"}, []string{"localhost:8080", "http://HOST:PORT"}},
		{[]string{"status", "--api", "http://127.0.0.1:1"}, []string{"no node answers at http://127.0.0.1:1", "sluice dev", "--api"}},
		{[]string{"anomalies", "maintenance"}, []string{"<device>"}},
		{[]string{"anomalies", "maintenance", "d1"}, []string{"--for", "--to", "--clear"}},
		{[]string{"anomalies", "maintenance", "d1", "--for", "2h", "--clear"}, []string{"one of", "--clear"}},
		{[]string{"anomalies", "maintenance", "d1", "--to", "2020-01-01"}, []string{"over", "--clear"}},
		{[]string{"anomalies", "maintenance", "d1", "--for", "soon"}, []string{"--for"}},
		{[]string{"anomalies", "normal"}, []string{"<id>"}},
		{[]string{"anomalies", "target", "much"}, []string{"much"}},
		{[]string{"anomalies", "target", "2", "--api", "http://127.0.0.1:1"}, []string{"no node answers", "--api"}},
		{[]string{"anomalies", "range", "t", "--min", "1"}, []string{"--max"}},
		{[]string{"anomalies", "range", "--min=1", "--max=2"}, []string{"which sensor"}},
		{[]string{"anomalies", "--limit", "x"}, []string{"limit"}},
		{[]string{"simulate", "--broker", "x", "--devices", "0"}, []string{"devices is 0"}},
		{[]string{"simulate", "--broker", "127.0.0.1:1", "--interval", "1ms"}, []string{"interval is 1ms"}},
		{[]string{"simulate", "--broker", "127.0.0.1:1", "--prefix", "a b"}, []string{"prefix"}},
		{[]string{"simulate", "--duration", "-1s"}, []string{"duration"}},
		{[]string{"import"}, []string{"<file>"}},
		{[]string{"import", csv + "x", "--broker", "127.0.0.1:1"}, []string{"no such file"}},
		{[]string{"import", csv, "--broker", "127.0.0.1:1"}, []string{"which device", "device-id", "ts, v"}},
		{[]string{"import", csv, "--broker", "127.0.0.1:1", "--device-id", "a b"}, []string{"device-id", "a b"}},
		{[]string{"import", csv, "--device", "ts", "--device-id", "x"}, []string{"both given"}},
		{[]string{"import", csv, "--broker", "nowhere", "--device-id", "x"}, []string{"nowhere", "host:port"}},
		{[]string{"import", csv, "--device-id", "x", "--time-step", "soon"}, []string{"time-step", "soon"}},
		{[]string{"import", csv, "--device-id", "x", "--time-base", "then", "--time-step", "1s"}, []string{"time-base", "then"}},
		{[]string{"import", csv, "--device-id", "x", "--time-step", "1s"}, []string{"belong together"}},
		{[]string{"import", csv, "--device-id", "x", "--batch", "1000", "--broker", "127.0.0.1:1"}, []string{"batch is 1000"}},
		{[]string{"import", csv, "--device-id", "x", "--delimiter", "ab"}, []string{"delimiter"}},
		{[]string{"import", csv, "--device-id", "x", "--state", "/nowhere/s", "--broker", "127.0.0.1:1"}, []string{"state file", "--state"}},
		{[]string{"detect", csv, "--value", "x"}, []string{`no column "x"`}},
		{[]string{"detect", csv + "x"}, []string{"no such file"}},
		{[]string{"detect", csv, "--alarms-per-month", "-1"}, []string{"-1"}},
		{[]string{"detect", csv, "--range", "v"}, []string{`range is "v"`, "NAME=LO:HI"}},
		{[]string{"detect", csv, "--range", "v=1"}, []string{`"1" is not two numbers`, "v=-40:125"}},
		{[]string{"detect", csv, "--range", "v=5:-5"}, []string{"LO must be below HI"}},
		{[]string{"detect", csv, "--range", "v=nan:1"}, []string{"LO must be below HI"}},
		{[]string{"detect", csv, "--range", "v=1:2", "--range", "v=1:3"}, []string{"given twice"}},
		{[]string{"detect", csv, "--range", "w=1:2"}, []string{"range of w: no such column", "there are v", "--value"}},
		{[]string{"cluster", "init", "--shards", "0"}, []string{"shards is 0"}},
		{[]string{"quarantine", "drop"}, []string{"<id>"}},
		{[]string{"quarantine", "replay", "x", "--payload", csv + "x"}, []string{"no such file"}},
		{[]string{"drain"}, []string{"<node>"}},
		{[]string{"device"}, []string{"expected"}},
		{[]string{"wal", "verify"}, []string{"<dir>"}},
		{[]string{"wal", "verify", t.TempDir()}, []string{"no *.wal files"}},
		{[]string{"wal", "stat", t.TempDir()}, []string{"no *.wal files"}},
		{[]string{"wal", "dump", t.TempDir(), "--from", "5", "--to", "3"}, []string{"to is smaller"}},
		{[]string{"config", "validate", config}, []string{"colour", "[5:"}},
		{[]string{"config", "validate", short}, []string{"cluster.secret", "mqtt.listen"}},
		{[]string{"config", "print", short}, []string{"cluster.secret"}},
		{[]string{"config", "validate"}, []string{"no configuration file", "FILE"}},
		{[]string{"config", "validate", short, "--config", config}, []string{"two configuration files"}},
		{[]string{"config", "validate", tlsless}, []string{"mqtt.tls", "cert", "mqtt.tls.client_ca", "mqtt.proxy_from", "ten/8"}},
		{[]string{"config", "validate", deaf}, []string{"mqtt.listen", "host:port"}},
		{[]string{"config", "validate", deaf, "--set", "mqtt.colour=blue"}, []string{"mqtt.colour", "config print"}},
		{[]string{"node", "--config", deaf, "--set", "mqtt.listen=127.0.0.1:0", "--set", "wal.segment_mib=lots"}, []string{"segment_mib"}},
		{[]string{"dev", "--nodes", "0", "--data", filepath.Join(t.TempDir(), "d")}, []string{"nodes is 0"}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) { // in turn: imports of one file exclude each other
			stdout, stderr, code := sluice(t, "", c.args...)
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if stdout != "" {
				t.Errorf("stdout is not empty:\n%s", stdout)
			}
			if !strings.HasPrefix(stderr, "sluice: ") || strings.Count(stderr, "\n") != 1 {
				t.Errorf("stderr is not one line:\n%s", stderr)
			}
			for _, w := range c.want {
				if !strings.Contains(stderr, w) {
					t.Errorf("stderr does not name %q:\n%s", w, stderr)
				}
			}
		})
	}
}

// TestEveryCommandHasAShortHelp walks the commands as the parser knows them.
func TestEveryCommandHasAShortHelp(t *testing.T) {
	var c cli
	parser, err := kong.New(&c, kong.Name("sluice"))
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range parser.Model.Leaves(false) {
		if leaf.Help == "" || len(leaf.Help) > 110 || !strings.HasSuffix(leaf.Help, ".") {
			t.Errorf("%s: help %q is not one short sentence", leaf.Path(), leaf.Help)
		}
		for _, f := range leaf.Flags {
			if f.Name != "help" && (f.Help == "" || len(f.Help) > 130) {
				t.Errorf("%s --%s: help %q is not one short text", leaf.Path(), f.Name, f.Help)
			}
		}
		t.Run(leaf.Path(), func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := sluice(t, "", append(commandOf(leaf), "-h")...)
			if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "Usage: sluice ") {
				t.Errorf("exit code %d, stderr %q, stdout\n%s", code, stderr, stdout)
			}
		})
	}
}

// commandOf is a command without its arguments.
func commandOf(leaf *kong.Node) []string {
	words := strings.Fields(leaf.Path())
	if at := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "<") }); at >= 0 {
		words = words[:at]
	}
	return words
}

func TestConfigPrintHidesSecretsAndIsAConfiguration(t *testing.T) {
	text := "node:\n  id: n0\n  zone: a\n  data: /var/lib/sluice\ncluster:\n  secret: 0123456789abcdef-secret\nstore:\n  database: postgres://sluice:hunter2@db:5432/x?password=hunter3\n"
	path := temp(t, "n.yaml", text)
	if stdout, stderr, code := sluice(t, "", "config", "validate", path); code != 0 || !strings.Contains(stdout, "is valid") {
		t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
	}
	stdout, stderr, code := sluice(t, "", "config", "print", path)
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, secret := range []string{"0123456789abcdef", "hunter2", "hunter3"} {
		if strings.Contains(stdout, secret) {
			t.Errorf("%s is printed:\n%s", secret, stdout)
		}
	}
	// What is printed holds every key and is read again.
	printed := temp(t, "printed.yaml", strings.ReplaceAll(stdout, node.Hidden, "0123456789abcdef"))
	if _, stderr, code := sluice(t, "", "config", "validate", printed); code != 0 {
		t.Errorf("what is printed is not valid: %s\n%s", stderr, stdout)
	}
	if stdout, _, code := sluice(t, "", "config", "print"); code != 0 || !strings.Contains(stdout, "interval: 1m0s") {
		t.Errorf("defaults: exit code %d\n%s", code, stdout)
	}
}

func TestSettingsWinOverTheEnvironmentAndThatOverTheFile(t *testing.T) {
	path := temp(t, "n.yaml", "node: {id: n0, zone: a, data: x}\ncluster: {secret: 0123456789abcdef}\nhttp: {listen: '127.0.0.1:1'}\nlog: {level: warn}\n")
	t.Setenv("SLUICE_HTTP_LISTEN", "127.0.0.1:2")
	t.Setenv("SLUICE_LOG_LEVEL", "error")
	t.Setenv("SLUICE_MQTT_PROXY_FROM", "10.0.0.0/8,192.0.2.7")
	stdout, stderr, code := sluice(t, "", "config", "print", "--config", path, "--set", "http.listen=127.0.0.1:3", "--set", "cluster.seeds=127.0.0.1:4,127.0.0.1:5")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{"listen: 127.0.0.1:3\n", "level: error\n", "- 10.0.0.0/8\n", "- 192.0.2.7\n", "- 127.0.0.1:5\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is missing in\n%s", want, stdout)
		}
	}
}

func TestDetectFindsWhatSticksOut(t *testing.T) {
	var b strings.Builder
	b.WriteString("time,value,label\n")
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 3000 {
		v := 20 + float64((i*7919)%100)/100
		if i >= 2500 && i < 2510 {
			v = 80
		}
		fmt.Fprintf(&b, "%s,%.2f,x\n", at.Add(time.Duration(i)*time.Minute).Format(time.RFC3339), v)
	}
	b.WriteString("broken,1,x\n")
	stdout, stderr, code := sluice(t, b.String(), "detect", "-")
	if code != 0 || !strings.Contains(stderr, "line 3002: column time") {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if !strings.HasPrefix(stdout, "3,000 readings of 1 series, ") || !strings.Contains(stdout, "2026-01-02T17:40:00.000000Z") {
		t.Errorf("the jump at 17:40 is not found:\n%s", stdout)
	}
	stdout, _, code = sluice(t, b.String(), "detect", "-", "--json", "--alerts")
	if code != 0 || !strings.Contains(stdout, `"device_id":"file","sensor":"value","opened":"2026-01-02T17:40:00.000000Z"`) {
		t.Errorf("exit code %d: %s", code, stdout)
	}
	stdout, _, code = sluice(t, b.String(), "detect", "-", "--json")
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if code != 0 || len(lines) != 3001 || !strings.Contains(lines[3000], `"line":3002,"time":null`) || !strings.Contains(lines[3000], `"error":"column time`) {
		t.Errorf("exit code %d, %d lines, the last is %s", code, len(lines), lines[len(lines)-1])
	}
	if opens := lines[2500]; !strings.Contains(opens, `"time":"2026-01-02T17:40:00.000000Z"`) || !strings.Contains(opens, `"grade":"critical","alert":true,"open":true,"event":"opened"`) {
		t.Errorf("the row of the jump is %s", opens)
	}
	stdout, _, code = sluice(t, b.String(), "detect", "-", "--scores")
	if lines := strings.Count(stdout, "\n"); code != 0 || lines != 3001 || !strings.HasPrefix(stdout, "time,device,sensor,value,score\n2026-01-01T00:00:00.000000Z,file,value,20,0\n") {
		t.Errorf("exit code %d, %d lines:\n%s", code, lines, stdout[:min(200, len(stdout))])
	}
	if _, stderr, code := sluice(t, "time,v\nx,1\n", "detect", "-"); code != 1 || !strings.Contains(stderr, "no reading could be used") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// The rows of a file with several sensors name the one that broke and its
// share; what is out of order is printed where it stands.
func TestDetectOfSeveralSensors(t *testing.T) {
	var b strings.Builder
	b.WriteString("ts,a,b,c,is_anomaly\n")
	for i := range 2000 {
		at := 1767225600 + 60*i
		if i == 100 || i == 101 { // swapped
			at = 1767225600 + 60*(201-i)
		}
		c := 5 + float64((i*104729)%100)/100
		if i >= 1800 && i < 1805 {
			c = 40
		}
		fmt.Fprintf(&b, "%d,%.2f,%.2f,%.2f,0\n", at, 20+float64((i*7919)%100)/100, 30+float64((i*6101)%100)/100, c)
	}
	plot := filepath.Join(t.TempDir(), "p.svg")
	stdout, stderr, code := sluice(t, b.String(), "detect", "-", "--json", "--plot", plot)
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	if code != 0 || len(lines) != 2000 || !strings.Contains(stderr, "1 lines are older") {
		t.Fatalf("exit code %d, %d lines: %s", code, len(lines), stderr)
	}
	var row struct {
		Line    int
		Alert   bool
		Sensor  string
		Sensors map[string]struct{ Share float64 }
	}
	if err := json.Unmarshal([]byte(lines[1800]), &row); err != nil {
		t.Fatal(err)
	}
	if !row.Alert || row.Line != 1802 || row.Sensor != "c" || len(row.Sensors) != 3 || row.Sensors["c"].Share < 0.8 {
		t.Errorf("%+v", row)
	}
	if svg, err := os.ReadFile(plot); err != nil || !strings.HasPrefix(string(svg), "<svg") {
		t.Errorf("plot: %v, %.40s", err, svg)
	}
	if _, stderr, code := sluice(t, b.String(), "detect", "-", "--plot", "p.gif"); code != 1 || !strings.Contains(stderr, "only .svg and .png") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// What a column cannot measure is an anomaly from its first value on, warm-up or
// not, with the range as its band.
func TestDetectKnowsPhysicalRanges(t *testing.T) {
	var b strings.Builder
	b.WriteString("time,\"a, =b\",c\n")
	for i := range 60 {
		v := 20.0
		if i == 5 || i == 6 {
			v = 3276.7
		}
		fmt.Fprintf(&b, "2026-01-01T00:%02d:00Z,%g,7\n", i, v)
	}
	stdout, stderr, code := sluice(t, b.String(), "detect", "-", "--range", "a, =b=-40:125", "--range=c=0:10", "--json", "--alerts")
	var a api.Anomaly
	if err := json.Unmarshal([]byte(stdout), &a); err != nil || code != 0 {
		t.Fatalf("exit code %d, %q, %s", code, stdout, stderr)
	}
	if a.Sensor != "a, =b" || a.Cause != "out of physical range" || a.Severity != 100 || a.Value != 3276.7 || a.Low != -40 || a.High != 125 || a.Closed == nil {
		t.Errorf("anomaly %+v", a)
	}
	stdout, _, _ = sluice(t, b.String(), "detect", "-", "--range", "a, =b=-40:125", "--json")
	if lines := strings.Split(stdout, "\n"); !strings.Contains(lines[5], `"severity":100,"grade":"critical","alert":true`) || !strings.Contains(lines[5], `"low":-40,"high":125,"cause":"out of physical range"`) ||
		strings.Contains(lines[10], `"low":-40`) {
		t.Errorf("rows %s\n%s", lines[5], lines[10])
	}
	if stdout, _, _ = sluice(t, b.String(), "detect", "-"); !strings.Contains(stdout, ", 0 anomalies") {
		t.Errorf("without a range: %s", stdout)
	}
}

// Every bad file is refused with its reason, or read as documented.
func TestDetectOfBadFiles(t *testing.T) {
	rows := func(format string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i, i)
		}
		return b.String()
	}
	for name, c := range map[string]struct {
		in, stdout, stderr string
		code               int
	}{
		"empty":              {"", "", "standard input is empty", 1},
		"header only":        {"time,v\n", "", "no line of data", 1},
		"no time column":     {"a,b\n1,2\n2,3\n", "", "no column holds the time: name one with --time; the columns are a, b", 1},
		"text alone":         {"time,v\n" + rows("2026-01-01T00:%02d:00Z,x%d\n", 5), "", "no column holds numbers: name them with --sensors (--value of detect); the columns are time, v", 1},
		"text in a cell":     {"time,v\n" + rows("2026-01-01T00:%02d:00Z,%d\n", 5) + "2026-01-01T00:07:00Z,oops\n", "5 readings", "line 7: column v: \"oops\" is not a number", 0},
		"unsorted":           {"time,v\n2026-01-01T00:09:00Z,1\n" + rows("2026-01-01T00:%02d:00Z,%d\n", 5), "6 readings", "5 lines are older than a line before them, the first is line 3", 0},
		"no numbers":         {"time,v\n2026-01-01T00:09:00Z,1\n2026-01-01T00:10:00Z,NaN\n2026-01-01T00:11:00Z,-inf\n2026-01-01T00:12:00Z,\n", "1 readings", "", 0},
		"too large":          {"time,v\n2026-01-01T00:09:00Z,1e400\n2026-01-01T00:10:00Z,1\n", "1 readings", "line 2: column v: \"1e400\" is beyond the range", 0},
		"BOM, CRLF, quotes":  {"\xef\xbb\xbf\"time\";\"v\"\r\n\"2026-01-01 00:09:00\";\"1,5\"\r\n", "1 readings", "", 0},
		"equal times":        {"time,v\n" + strings.Repeat("2026-01-01T00:09:00Z,1\n", 9), "9 readings", "", 0},
		"epoch milliseconds": {"time,v\n1767225600000,1\n1767225660000,1\n", "2 readings", "", 0},
		"a huge line":        {"time,v\n2026-01-01T00:09:00Z,1\n2026-01-01T00:09:00Z," + strings.Repeat("9", 1<<20) + "\n", "1 readings", "line 3: line is longer than 524288 bytes", 0},
		"fields":             {"time,v\n2026-01-01T00:09:00Z,1\n2026-01-01T00:09:00Z,1,2\n,3\n", "1 readings", "line 3: 3 fields, want 2\nline 4: column time: time is empty", 0},
		"quotes over lines":  {"time,v\n2026-01-01T00:09:00Z,\"1\n2\"\n2026-01-01T00:10:00Z,1\n", "1 readings", "line 2: a quoted field does not end in this line", 0},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := sluice(t, c.in, "detect", "-")
			if code != c.code || !strings.HasPrefix(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) || c.stderr == "" && stderr != "" {
				t.Errorf("exit code %d\n%s%s\nwant %d, %q, %q", code, stdout, stderr, c.code, c.stdout, c.stderr)
			}
		})
	}
}

func TestTimesOfFlags(t *testing.T) {
	now := time.Date(2026, 1, 23, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]string{
		"2h": "2026-01-23T10:00:00Z", "-90m": "2026-01-23T10:30:00Z", "2026-01-20": "2026-01-20T00:00:00Z", "2026-01-20T05:06": "2026-01-20T05:06:00Z",
		"2026-01-23T15:24:46.123456Z": "2026-01-23T15:24:46.123456Z", "2026-01-23T15:24:46+02:00": "2026-01-23T13:24:46Z", "1700000000000": "2023-11-14T22:13:20Z",
	} {
		got, err := parseTime(s, now)
		if err != nil || got.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("%s: got %v, %v, want %s", s, got, err, want)
		}
	}
}

func TestProgressSaysRateAndRest(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	b := &bar{terminal: true, began: at, f: nil}
	b.rate.add(at, 0)
	b.drawn = true
	got := b.text(at.Add(2*time.Second), 500, 2000, 3000, "3,000 messages")
	if want := "[######------------------]  25 %  1,500/s  3,000 messages  6s left"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	b.terminal = false
	if got := b.text(at.Add(4*time.Second), 0, 0, 5000, "x"); got != "1,250/s  x" && got != "1,000/s  x" {
		t.Errorf("without a size: %q", got)
	}
}

func TestTableWidensAsItGoes(t *testing.T) {
	var b strings.Builder
	w := newTable(&b, "NAME", ">N", "NOTE")
	w.row("ä", "1", "x")
	w.row("long name", "1,000", "")
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	if want := "NAME           N  NOTE\nä              1  x\nlong name  1,000\n"; b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	if err := newTable(brokenPipe{}, "A").flush(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a reader that is gone: %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestSizesAndCounts(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "0.977 KiB", 1024: "1 KiB", 64 << 20: "64 MiB", 5 << 40: "5 TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567", 100000: "100,000"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %q, want %q", n, got, want)
		}
	}
}
