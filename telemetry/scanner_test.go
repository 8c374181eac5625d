package telemetry

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

const sectionThree = `{"device_id":"sensor-001","timestamp":"2026-01-23T15:24:46.123456","sensors":{"temperature":21.52,"humidity":48.1,"pressure":1013.2,"battery":93.5},` +
	`"metadata":{"firmware_version":"1.2.3","signal_strength":-61}}`

const testReceived = 1_769_181_900_000_000

func parse(t *testing.T, device, payload string) []Message {
	t.Helper()
	out, err := NewScanner().Parse(device, []byte(payload), testReceived, nil)
	if err != nil || len(out) == 0 {
		t.Fatalf("parse %.80q: %d messages, error %v", payload, len(out), err)
	}
	return out
}

func parseOne(t *testing.T, payload string) Message {
	t.Helper()
	out := parse(t, "sensor-001", payload)
	if len(out) != 1 {
		t.Fatalf("parse %.80q: %d messages", payload, len(out))
	}
	return out[0]
}

func TestParseReadsTheDocumentedMessage(t *testing.T) {
	for _, device := range []string{"sensor-001", ""} {
		out := parse(t, device, sectionThree)
		want := []Message{{
			Device: "sensor-001", Time: 1_769_181_886_123_456, Received: testReceived,
			Readings: []Reading{
				{"temperature", Value{Kind: KindDecimal, Mantissa: 2152, Scale: 2}}, {"humidity", Value{Kind: KindDecimal, Mantissa: 481, Scale: 1}},
				{"pressure", Value{Kind: KindDecimal, Mantissa: 10132, Scale: 1}}, {"battery", Value{Kind: KindDecimal, Mantissa: 935, Scale: 1}},
			},
			Attributes: []Attribute{{"firmware_version", "1.2.3"}, {"signal_strength", "-61"}},
		}}
		if !equalMessages(out, want) {
			t.Errorf("device %q:\n got %+v\nwant %+v", device, out, want)
		}
	}
}

// TestBadObjectsAreQuarantinedWithTheReason has a payload for each reason.
func TestBadObjectsAreQuarantinedWithTheReason(t *testing.T) {
	wide := func(key string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"s%d":1`, i)
		}
		return `{"` + key + `":{` + b.String()[1:] + `}}`
	}
	for payload, reason := range map[string]string{
		"":                                 "payload is empty",
		" \n":                              "payload is empty",
		"[]":                               "array is empty",
		"42":                               "payload is neither an object nor an array of objects",
		"[7]":                              "array element is not an object",
		`{"sensors":{"a":1}`:               "not JSON: unexpected end of JSON input",
		`{"sensors":{"a":1}} x`:            "not JSON: invalid character 'x' after top-level value",
		"{\"sensors\":{\"a\xff\":1}}":      "not valid UTF-8",
		`{}`:                               "object has neither sensors nor metadata",
		`{"temperature":21.5}`:             "object has neither sensors nor metadata",
		`{"device_id":"b","sensors":{}}`:   "device_id differs from the device of the topic",
		`{"device_id":"b c","sensors":{}}`: "device_id is not an acceptable device id",
		`{"device_id":7,"sensors":{}}`:     "device_id is not an acceptable device id",
		`{"sensors":[1]}`:                  "sensors is not an object",
		`{"metadata":"x"}`:                 "metadata is not an object",
		`{"sensors":{"a":[1]}}`:            `sensor "a": arrays are not readings`,
		`{"sensors":{"a":{"b":{"c":{"d":{"e":1}}}}}}`:                         `sensor "a.b.c.d": nested more than 4 deep`,
		`{"sensors":{"":1}}`:                                                  `sensors: empty name under ""`,
		`{"sensors":{"a":{"":1}}}`:                                            `sensors: empty name under "a."`,
		`{"sensors":{"a\u0007":1}}`:                                           `sensors: name "a\a" holds control characters`,
		`{"sensors":{"` + strings.Repeat("n", 129) + `":1}}`:                  `sensors: name "` + strings.Repeat("n", 64) + `"... is over 128 bytes`,
		`{"sensors":{"a":"\u0000"}}`:                                          `sensor "a": text holds U+0000`,
		`{"metadata":{"a":"\u0000"}}`:                                         `metadata "a": text holds U+0000`,
		wide("sensors", SensorsMax+1):                                         "more than 1024 sensors",
		wide("metadata", AttributesMax+1):                                     "more than 256 attributes",
		`{"metadata":{"a":"` + strings.Repeat("v", AttributeBytesMax) + `"}}`: "attributes are over 16384 bytes",
	} {
		out := parse(t, "sensor-001", payload)
		element := payload
		if reason == string(badElement) {
			element = "7"
		}
		want := []Message{{Device: "sensor-001", Received: testReceived, Reason: reason, Payload: []byte(element)}}
		if !equalMessages(out, want) {
			t.Errorf("%.80q: got %+v, want reason %q", payload, out, reason)
		}
	}
	if m := parseOne(t, wide("sensors", SensorsMax)); m.Reason != "" || len(m.Readings) != SensorsMax {
		t.Errorf("%d sensors: %d readings, reason %q", SensorsMax, len(m.Readings), m.Reason)
	}
	if m := parseOne(t, wide("metadata", AttributesMax)); m.Reason != "" || len(m.Attributes) != AttributesMax {
		t.Errorf("%d attributes: %d read, reason %q", AttributesMax, len(m.Attributes), m.Reason)
	}
}

func TestGoodElementsOfAnArrayGoOn(t *testing.T) {
	out := parse(t, "", `[{"device_id":"a","sensors":{"t":1}}, {"device_id":"b","sensors":{"t":[]}},{"sensors":{"t":2}}, 7 ,{"device_id":"c","sensors":{"t":3}}]`)
	var got []string
	for _, m := range out {
		got = append(got, fmt.Sprintf("%s|%s|%s|%d", m.Device, m.Reason, m.Payload, len(m.Readings)))
	}
	want := []string{
		"a|||1", `b|sensor "t": arrays are not readings|{"device_id":"b","sensors":{"t":[]}}|0`,
		`|device_id is missing|{"sensors":{"t":2}}|0`, "|array element is not an object|7|0", "c|||1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestBrokenArrayIsQuarantinedAsAWhole(t *testing.T) {
	payload := `[{"sensors":{"t":1}},{"sensors":{"t":2}]`
	if m := parseOne(t, payload); !strings.HasPrefix(m.Reason, "not JSON: ") || string(m.Payload) != payload {
		t.Errorf("got %+v", m)
	}
}

func TestKeysFollowTheRules(t *testing.T) {
	for payload, want := range map[string]string{
		`{"sensors":{"a":1,"A":2}}`:                                              "a=1 A=2",
		`{"sensors":{"a":1,"b":2,"a":3}}`:                                        "b=2 a=3",
		`{"sensors":{"a":1},"sensors":{"b":2}}`:                                  "b=2",
		`{"Sensors":{"x":1},"sensors":{"a":1},"extra":[{"deep":{}}]}`:            "a=1",
		`{"sensors":{"env":{"in":{"t":1},"out":{"t":2}}}}`:                       "env.in.t=1 env.out.t=2",
		`{"sensors":{"a.b":1,"a":{"b":2}}}`:                                      "a.b=2",
		`{"sensors":{"a":null,"b":"NaN","c":"Infinity","d":"-Infinity"}}`:        "nulls=4",
		`{"sensors":{"a":NaN,"b":-Infinity,"c":1}}`:                              "c=1 nulls=2",
		`{"sensors":{"door":"open","t":1},"metadata":{"z":{"y":true},"a":null}}`: `t=1 a:null door:open z.y:true`,
		`{"sensors":{"k":"sensor"},"metadata":{"k":"meta"}}`:                     "k:meta",
		`{"metadata":{"k":[1, {"a": 2}],"n":1.50,"s":"q\"","e":1E5}}`:            `e:1E5 k:[1,{"a":2}] n:1.50 s:q"`,
		`{"metadata":{"a":{"b":{"c":{"d":{"e": 1}}}}}}`:                          `a.b.c.d:{"e":1}`,
		`{"sensors":{"\u0074":1},"\u006detadata":{"a":"\u00e4"}}`:                "t=1 a:\u00e4",
		`{"sensors":{"temp\u00e9rature":1}}`:                                     "temp\u00e9rature=1",
		`{"sensors":{}}`:                                                         "",
	} {
		m := parseOne(t, payload)
		var parts []string
		for _, r := range m.Readings {
			parts = append(parts, fmt.Sprintf("%s=%v", r.Sensor, r.Value.Float64()))
		}
		if m.Nulls > 0 {
			parts = append(parts, fmt.Sprintf("nulls=%d", m.Nulls))
		}
		for _, a := range m.Attributes {
			parts = append(parts, a.Key+":"+a.Value)
		}
		if got := strings.Join(parts, " "); got != want || m.Reason != "" {
			t.Errorf("%s: got %q, want %q (reason %q)", payload, got, want, m.Reason)
		}
	}
}

func TestWhatCannotBeQuarantinedIsAnError(t *testing.T) {
	s := NewScanner()
	kept := []Message{{Device: "kept"}}
	for name, c := range map[string]struct {
		device  string
		payload string
		want    error
	}{
		"device":   {"a b", "{}", ErrDeviceID},
		"large":    {"a", strings.Repeat(" ", PayloadBytesMax+1), ErrPayloadTooLarge},
		"elements": {"a", "[" + strings.Repeat(`{"sensors":{}},`, MessagesMax) + "{}]", ErrTooManyMessages},
		"numbers":  {"a", "[" + strings.Repeat(`1,`, MessagesMax) + "1]", ErrTooManyMessages},
	} {
		if got, err := s.Parse(c.device, []byte(c.payload), 1, kept); !errors.Is(err, c.want) || len(got) != 1 {
			t.Errorf("%s: %d messages, error %v, want %v", name, len(got), err, c.want)
		}
	}
	if out, err := s.Parse("a", []byte("["+strings.Repeat(`{"sensors":{}},`, MessagesMax-1)+"{}]"), 1, nil); err != nil || len(out) != MessagesMax {
		t.Errorf("%d objects: %d messages, error %v", MessagesMax, len(out), err)
	}
}

func TestMessagesShareNoMemoryWithThePayload(t *testing.T) {
	payload := []byte(`[` + sectionThree + `,{"sensors":{"text":"open","b":[1]}},{"sensors":{"esc":"\n"}}]`)
	out, err := NewScanner().Parse("sensor-001", payload, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprintf("%+v", out)
	for i := range payload {
		payload[i] = 'x'
	}
	if after := fmt.Sprintf("%+v", out); after != before {
		t.Errorf("messages changed with the payload:\n%s\n%s", before, after)
	}
}

// Two names of a payload may share a slot of the seeded string cache (one seed in
// ten here); then each costs an allocation. So a fresh seed is tried a few times:
// what allocates for another reason does so under every seed.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	array := "[" + strings.Repeat(sectionThree+",", 9) + sectionThree + "]"
	var dst []Message
	const other = `{"device_id":"sensor-001","timestamp":1769181886.5,"sensors":{"env":{"in":{"t":21.5},"out":{"t":-3}},"caf\u00e9":1,"door":"open","x":null},"metadata":{"ort":"B\u00fcro"}}`
	mixed := "[" + other + "," + sectionThree + "," + other + "," + sectionThree + "]"
	for _, payload := range []string{sectionThree, array, other, mixed} {
		for _, device := range []string{"sensor-001", ""} {
			p := []byte(payload)
			fewest := math.Inf(1)
			for seed := 0; seed < 10 && fewest > 0; seed++ {
				s := NewScanner()
				fewest = min(fewest, testing.AllocsPerRun(100, func() { dst, _ = s.Parse(device, p, 1, dst[:0]) }))
			}
			if fewest != 0 {
				t.Errorf("device %q: %v allocations", device, fewest)
			}
		}
	}
}

// TestColdCachesChangeNothing parses more names and texts than the caches hold.
func TestColdCachesChangeNothing(t *testing.T) {
	p := parsers{scanner: NewScanner()}
	for i := range 3 * internNames {
		p.agree(t, "a", fmt.Appendf(nil, `{"sensors":{"s%d":1,"t%d":"x%d","s%d":2},"metadata":{"m%d":"%d","m%d":1}}`, i, i, i, i+i%2, i, i, i+i%3))
	}
	var wide strings.Builder
	for i := range SensorsMax - 1 {
		fmt.Fprintf(&wide, `"s%d":%d,`, i, i)
	}
	for _, last := range []string{"fresh", "s0", "s511", "s1022"} {
		p.agree(t, "a", []byte(`{"sensors":{`+wide.String()+`"`+last+`":1}}`))
	}
}
