package importer

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		line      string
		delimiter byte
		want      []string
		err       error
	}{
		{"a,b,c", ',', []string{"a", "b", "c"}, nil},
		{" a , b ,", ',', []string{"a", "b", ""}, nil},
		{"", ',', []string{""}, nil},
		{`"a,b",c`, ',', []string{"a,b", "c"}, nil},
		{`"say ""hi""" ,c`, ',', []string{`say "hi"`, "c"}, nil},
		{`"",x`, ',', []string{"", "x"}, nil},
		{`a "b",c`, ',', []string{`a "b"`, "c"}, nil},
		{`"a`, ',', nil, errQuoteOpen},
		{`"a"b,c`, ',', nil, errQuoteAfter},
		{"a;b", ';', []string{"a", "b"}, nil},
		{"a\t\tb", '\t', []string{"a", "", "b"}, nil},
		{"  1  2\t3  ", blanks, []string{"1", "2", "3"}, nil},
		{"   ", blanks, nil, nil},
	} {
		got, err := split(nil, []byte(c.line), c.delimiter)
		if err != c.err {
			t.Errorf("split %q: error %v, want %v", c.line, err, c.err)
			continue
		}
		var texts []string
		for _, f := range got {
			texts = append(texts, string(f))
		}
		if err == nil && !slices.Equal(texts, c.want) {
			t.Errorf("split %q: got %q, want %q", c.line, texts, c.want)
		}
	}
}

func TestDelimiterIsGuessedFromTheFirstLine(t *testing.T) {
	for line, want := range map[string]byte{
		"a,b,c": ',', "a;b;c": ';', "a\tb": '\t', "a|b": '|', "1 1 -0.0007": blanks, "a": ',', "a b,c d,e": ',',
	} {
		if got := guessDelimiter([]byte(line)); got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

func TestTimes(t *testing.T) {
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		clock clock
		cell  string
		want  string // RFC 3339, or "error: ..."
	}{
		{clock{}, "2026-01-23T15:24:46.123456Z", "2026-01-23T15:24:46.123456Z"},
		{clock{}, "2026-01-23T15:24:46.123456789Z", "2026-01-23T15:24:46.123456Z"},
		{clock{}, "2026-01-23T15:24:46+02:00", "2026-01-23T13:24:46Z"},
		{clock{}, "2026-01-23 15:24:46", "2026-01-23T15:24:46Z"},
		{clock{}, "2026-01-23 15:24", "2026-01-23T15:24:00Z"},
		{clock{}, "2026-01-23", "2026-01-23T00:00:00Z"},
		{clock{}, "1333263600", "2012-04-01T07:00:00Z"},
		{clock{}, "1333263600.25", "2012-04-01T07:00:00.25Z"},
		{clock{}, "1333263600.123456789", "2012-04-01T07:00:00.123456Z"},
		{clock{}, "1333263600123", "2012-04-01T07:00:00.123Z"},
		{clock{}, "1333263600123.5", "2012-04-01T07:00:00.1235Z"},
		{clock{}, "1333263600123456", "2012-04-01T07:00:00.123456Z"},
		{clock{}, "1333263600123456789", "2012-04-01T07:00:00.123456Z"},
		{clock{}, "1.3332636e9", "2012-04-01T07:00:00Z"},
		{clock{unit: "ms"}, "90000", "1970-01-01T00:01:30Z"},
		{clock{unit: "us"}, "1", "1970-01-01T00:00:00.000001Z"},
		{clock{unit: "ns"}, "1999", "1970-01-01T00:00:00.000001Z"},
		{clock{layout: "02.01.2006 15:04"}, "23.01.2026 15:24", "2026-01-23T15:24:00Z"},
		{clock{base: base, step: time.Minute}, "0", "2026-01-01T00:00:00Z"},
		{clock{base: base, step: time.Minute}, "61", "2026-01-01T01:01:00Z"},
		{clock{base: base, step: time.Minute}, "1.5", "2026-01-01T00:01:30Z"},
		{clock{}, "", "error: time is empty"},
		{clock{}, "-5", "error: time is not within"},
		{clock{}, "soon", "error: time \"soon\" is neither"},
		{clock{}, "12x", "error: time \"12x\" is neither"},
		{clock{}, "1.2.3", "error: time \"1.2.3\" is not"},
		{clock{}, "1969-12-31", "error: time is not within"},
		{clock{}, "9999-01-01", "error: time is not within"},
		{clock{}, "99999999999999999999", "error: time"},
		{clock{layout: "02.01.2006"}, "2026-01-01", "error: time \"2026-01-01\" does not have the form"},
		{clock{base: base, step: time.Hour}, "1e18", "error: time is not within"},
		{clock{base: base, step: time.Hour}, "NaN", "error: counter"},
	} {
		us, err := c.clock.micros(c.cell)
		got := ""
		if err != nil {
			got = "error: " + err.Error()
		} else {
			got = time.UnixMicro(us).UTC().Format(time.RFC3339Nano)
		}
		if got != c.want && (err == nil || !strings.HasPrefix(got, c.want) || !strings.HasPrefix(c.want, "error")) {
			t.Errorf("%+v %q: got %s, want %s", c.clock, c.cell, got, c.want)
		}
	}
}

func TestNumbersKeepTheirDigits(t *testing.T) {
	for cell, want := range map[string]string{
		"641.820": "641.820", "0": "0", "-0.0007": "-0.0007", "1e5": "1e5", "1E+05": "1E+05", "9046.19": "9046.19",
		"+1.5": "1.5", ".5": "0.5", "5.": "5", "007": "7", "-.25": "-0.25", "9007199254740993": "9007199254740993",
	} {
		k, err := kindOf(cell)
		if k != cellNumber || err != nil {
			t.Errorf("%q: kind %d, %v", cell, k, err)
			continue
		}
		if got := string(appendNumber(nil, cell)); got != want {
			t.Errorf("%q: got %s, want %s", cell, got, want)
		}
	}
	for cell, want := range map[string]cellKind{
		"": cellEmpty, "NaN": cellEmpty, "NA": cellEmpty, "null": cellEmpty, "-inf": cellEmpty, "True": cellBool,
		"0x10": cellText, "1_000": cellText, "1-2": cellText, "e": cellText, "12 V": cellText, "--1": cellText,
	} {
		if got, err := kindOf(cell); got != want || err != nil {
			t.Errorf("%q: kind %d, %v, want %d", cell, got, err, want)
		}
	}
	if _, err := kindOf("1e999"); err == nil {
		t.Error("1e999 fits into 64 bits")
	}
}

func TestMappingMakesMessages(t *testing.T) {
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name   string
		m      Mapping
		sample string
		line   string
		want   string // device, readings, JSON
	}{
		{"header names everything", Mapping{}, "device_id,timestamp,t,h\n", "d1,1333263600,1.50,",
			`d1 1 {"device_id":"d1","timestamp":"2012-04-01T07:00:00Z","sensors":{"t":1.50}}`},
		{"template", Mapping{Device: "engine-{unit}/{plant}", Time: "none"}, "unit,plant,x\n1,a,2\n", "1,a,2", "error: device \"engine-1/a\""},
		{"template of two columns", Mapping{Device: "{plant}:engine-{unit}", Time: "none"}, "unit,plant,x\n", "1,a,2",
			`a:engine-1 1 {"device_id":"a:engine-1","sensors":{"x":2}}`},
		{"cycles", Mapping{NoHeader: true, Columns: []string{"unit", "cycle", "s"}, Device: "e{unit}", Time: "cycle", TimeBase: base, TimeStep: time.Minute}, "1 1 5\n", "3  90 7.5 ",
			`e3 1 {"device_id":"e3","timestamp":"2026-01-01T01:30:00Z","sensors":{"s":7.5}}`},
		{"date and time apart", Mapping{DeviceID: "d", Time: "{day} {hour}"}, "day,hour,x\n1/2/2026,10:00,5\n", "1/2/2026,10:30,6",
			`d 1 {"device_id":"d","timestamp":"2026-01-02T10:30:00Z","sensors":{"x":6}}`},
		{"a bad time of two columns", Mapping{DeviceID: "d", Time: "{day} {hour}"}, "day,hour,x\n", "1/2/2026,noon,6", "error: time of several columns: time \"1/2/2026 noon\""},
		{"booleans and quotes", Mapping{DeviceID: "d", Time: "ts"}, "ts,on,\"a \"\"b\"\"\"\n", "5,TRUE,1",
			`d 2 {"device_id":"d","timestamp":"1970-01-01T00:00:05Z","sensors":{"on":true,"a \"b\"":1}}`},
		{"chosen sensors", Mapping{DeviceID: "d", Sensors: []string{"b"}}, "ts,a,b\n", "5,text,1",
			`d 1 {"device_id":"d","timestamp":"1970-01-01T00:00:05Z","sensors":{"b":1}}`},
		{"text columns are left out", Mapping{DeviceID: "d"}, "ts,name,b\n1,x,2\n2,y,3\n", "5,z,1",
			`d 1 {"device_id":"d","timestamp":"1970-01-01T00:00:05Z","sensors":{"b":1}}`},
		{"a bad cell costs its line, not the column", Mapping{DeviceID: "d"}, "ts,b\n1,2\n2,oops\n", "5,oops", "error: column b: \"oops\" is not a number"},
		{"missing field", Mapping{DeviceID: "d"}, "ts,b\n", "5", "error: 1 fields, want 2"},
		{"nothing in it", Mapping{DeviceID: "d"}, "ts,b\n", "5,", "error: no value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := makePlan(&c.m, []byte(c.sample), nil)
			if err != nil {
				t.Fatal(err)
			}
			var fields [][]byte
			body, device, readings, err := p.message(nil, []byte(c.line), &fields)
			got := fmt.Sprintf("%s %d %s", device, readings, body)
			if err != nil {
				got = "error: " + err.Error()
			}
			if got != c.want && !(strings.HasPrefix(c.want, "error") && strings.HasPrefix(got, c.want)) {
				t.Fatalf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestMappingProblemsNameTheRemedy(t *testing.T) {
	for _, c := range []struct {
		m      Mapping
		sample string
		want   []string
	}{
		{Mapping{}, "a,b\n", []string{"which device", "device-id", "a, b"}},
		{Mapping{DeviceID: "d"}, "a,b\n", []string{"no column holds the time", "none"}},
		{Mapping{Device: "x", Time: "b"}, "a,b\n", []string{`device: no column "x"`, "a, b"}},
		{Mapping{Device: "p-{x}", Time: "b"}, "a,b\n", []string{`device: no column "x"`}},
		{Mapping{Device: "p-{a", Time: "b"}, "a,b\n", []string{"without }"}},
		{Mapping{Device: "p-a}", Time: "b"}, "a,b\n", []string{"without {"}},
		{Mapping{DeviceID: "d", Time: "c"}, "a,b\n", []string{`time: no column "c"`}},
		{Mapping{DeviceID: "d", Time: "{a} {c}"}, "a,b\n", []string{`time: no column "c"`}},
		{Mapping{DeviceID: "d", Time: "a", Sensors: []string{"z"}}, "a,b\n", []string{`sensors: no column "z"`}},
		{Mapping{DeviceID: "d", Time: "a"}, "a,b\n1,x\n", []string{"no column holds numbers"}},
		{Mapping{DeviceID: "d", Time: "a"}, "a,b,b\n", []string{"columns 2 and 3 are both named"}},
		{Mapping{DeviceID: "d", Time: "a"}, "a,\n1,2\n", []string{`column 2: "" is no name of a sensor`}},
		{Mapping{DeviceID: "d", Time: "a", NoHeader: true, Columns: []string{"a"}}, "1,2\n", []string{"2 fields, columns names 1"}},
		{Mapping{DeviceID: "d", Time: "none", TimeBase: time.Now(), TimeStep: 1}, "a,b\n", []string{"time is none"}},
	} {
		_, err := makePlan(&c.m, []byte(c.sample), nil)
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%+v on %q: got %v, want %q in it", c.m, c.sample, err, w)
			}
		}
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	cfg := Config{Format: "xml", InFlight: -1, Connections: 1000, Batch: 501, Mapping: Mapping{
		Device: "a", DeviceID: "b c", Time: NoTime, TimeUnit: "h", TimeStep: time.Second, TimeLayout: "x", Columns: []string{"a"}, Delimiter: "ab",
	}}
	err := cfg.Validate()
	for _, want := range []string{"no input", "format", "brokers", "in-flight", "connections", "batch is", "batch needs", "both given", "device-id", "time-unit", "belong together", "leave time-unit", "add no-header", "delimiter"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func FuzzSplitAndNumbers(f *testing.F) {
	for _, s := range []string{"a,b", `"a""b",c`, "1 2  3", `"`, "1e999,0x1,.5"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		for _, d := range []byte{',', ';', '\t', blanks} {
			fields, err := split(nil, line, d)
			if err != nil {
				continue
			}
			for _, cell := range fields {
				k, err := kindOf(string(cell))
				if k != cellNumber || err != nil {
					continue
				}
				if out := appendNumber(nil, string(cell)); !jsonNumber(string(out)) || bytes.ContainsAny(out, "xX_") {
					t.Fatalf("%q becomes %q, which is no JSON number", cell, out)
				}
			}
		}
		c := clock{}
		if us, err := c.micros(string(line)); err == nil && (us < 0 || us > math.MaxInt64/1000) {
			t.Fatalf("time %q is %d", line, us)
		}
	})
}
