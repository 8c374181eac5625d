package telemetry

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// seeds are payloads of every form that section 3 of the design names, and of
// many that it excludes.
func seeds() []string {
	list := []string{
		sectionThree,
		strings.ReplaceAll(strings.ReplaceAll(sectionThree, ":", ": "), ",", ", "),
		strings.ReplaceAll(sectionThree, `,"`, " ,\n\t\""),
		"", " ", "x", "{", "{}", "[]", "[{}]", "42", `"x"`, "null", "[1]", "[null,[],{}]", "{} {}", "[{}],", "[,]", "[{},]",
		`{"sensors":{}}`, `{"sensors":null}`, `{"sensors":[]}`, `{"sensors":1}`, `{"metadata":{}}`, `{"metadata":null}`, `{"metadata":7}`, `{"temperature":21}`,
		`{"device_id":"other","sensors":{"a":1}}`, `{"device_id":null,"sensors":{"a":1}}`, `{"device_id":7,"sensors":{"a":1}}`, `{"device_id":"sensor-001 ","sensors":{}}`,
		`{"device_id":"sensor-001","device_id":"other","sensors":{"a":1}}`, `{"device_id":"` + "\u00e9" + `","sensors":{}}`,
		`{"sensors":{"a":1},"sensors":{"b":2}}`, `{"sensors":{"a":1,"a":2}}`, `{"sensors":{"a":1,"b":2,"a":null}}`, `{"metadata":{"a":1,"a":2}}`, `{"sensors":{"a":1e999,"a":1}}`,
		`{"sensors":{"a":{"b":1},"a":{"c":2},"a.c":3}}`, `{"sensors":{"a":{"b":{"c":{"d":1}}}}}`, `{"sensors":{"a":{"b":{"c":{"d":{"e":1}}}}}}`, `{"sensors":{"a":[1]}}`, `{"sensors":{"a":{"":1}}}`,
		`{"metadata":{"a":{"b":{"c":{"d":{"e": 1 }}}},"l":[1, 2]}}`, `{"metadata":{"z":true,"a":false,"m":null,"n":-61,"f":1.50,"e":1E5}}`,
		`{"sensors":{"status":"ok","a":1},"metadata":{"status":"meta"}}`, `{"sensors":{"a":"NaN","b":"Infinity","c":"-Infinity","d":null,"e":"nan"}}`, `{"sensors":{"a":NaN,"b":-Infinity,"c":Infinity,"d":"NaN"}}`, `{"sensors":{NaN:1}}`, `{"sensors":{"a":-NaN}}`,
		`{"sensors":{"a":"x` + "\u00b0" + `C","temp` + "\u00e9" + `rature":1}}`, "{\"sensors\":{\"a\xff\":1}}", "{\"x\":\"\xff\",\"sensors\":{}}", `{"sensors":{"a\u0007":1}}`, `{"sensors":{"\u0061":1,"a":2}}`, `{"sensors":{"a":"\u0000"}}`, `{"metadata":{"a":"\u0000"}}`, "{\"sensors\":{\"a\x7f\":1}}", "{\"sensors\":{\"a\u0085\":1}}", `{"sensors":{"":1}}`,
		`{"sensors":{"` + strings.Repeat("n", 128) + `":1}}`, `{"sensors":{"` + strings.Repeat("n", 129) + `":1}}`, `{"metadata":{"a":"` + strings.Repeat("v", AttributeBytesMax) + `"}}`, `{"metadata":{"a":"` + strings.Repeat("v", AttributeBytesMax-1) + `"}}`,
		`{"\u0073ensors":{"a":1}}`, `{"sensors":{"a":"\n\"\\"}}`, `{"x":{"y":["\q"]},"sensors":{}}`, `{"x":[1,{"y":[]},"z"],"sensors":{"a":1}}`, `{"x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `,"sensors":{}}`, `{"x":01,"sensors":{}}`,
		`[` + sectionThree + `,{"sensors":{"a":[1]}},{"sensors":{"b":2}}]`, `[` + sectionThree + `,{"sensors":{"a":1}]`, `[{"sensors":{"a":"\t"}},{"sensors":{"b":2}}]`, ` [ {"sensors":{"a":1}} , {"device_id":"x","sensors":{}} ] `,
		`{"sensors":{"a":true,"b":false,"c":tru}}`, `{"sensors":{"a":true}`, `{"sensors":{"a":1,}}`, `{"sensors":{"a" : 1 , "b" : 2}}`, `{"sensors":{"a":"` + "\t" + `"}}`,
	}
	list = append(list,
		`{"sensors":{"env":{"in":{"t":1},"out":{"t":2,"h":3}},"u":4}}`, `{"sensors":{"env":{"in":{"t":1},"out":{"t":2}},"h":3,"u":4}}`, `{"sensors":{"env":{"in":{"t":1}}},"metadata":{"env":{"in":{"t":1}}}}`, `{"sensors":{"a":{},"b":{"c":{}},"d":1}}`,
		`{"sensors":{"a":{"b":1},"a":{"b":2}}}`, `{"sensors":{"a":{"b":1},"a":2}}`, `{"sensors":{"a":2,"a":{"b":1}}}`, `{"sensors":{"a":{"b":1},"a.b":2}}`, `{"sensors":{"a.b":{"c":1},"a":{"b.c":2}}}`, `{"sensors":{"a":{"b":1,"b":2}}}`, `{"sensors":{"a":{"`+strings.Repeat("n", 126)+`":1}}}`, `{"sensors":{"a":{"`+strings.Repeat("n", 127)+`":1}}}`,
		`{"metadata":{"ort":"B\u00fcro \ud83d\ude00","x":"\ud800","caf\u00e9":"a\/b","q":"\q"}}`, `{"metadata":{"ort":"B\u00fcro","caf\u00e9":"\t"},"x\n":["\n",{"\u0000":1}]}`, `{"sensors":{"caf\u00e9":1,"caf`+"\u00e9"+`":2}}`, `{"sensors":{"caf\u00e9":1,"b":2}}`, `{"sensors":{"caf\u00e9":{"\u00e9":3}}}`, `{"sensors":{"a":"\u004eaN","b":"x\`,
		"{\"sensors\":{\"a\":\"\\n\xff\"}}", "{\"sensors\":{\"a\":\"\\n\t\"}}", `{"sensors":{"\u0000":1}}`, `{"sensors":{"a":{"\u0085":1}}}`)
	for _, n := range []string{"0", "-0", "-0.0", "0.0", "00", "01", "-", "1.", ".5", "1.5e", "1e5", "1E+5", "1e-7", "21.50", "-273.15", "9007199254740992", "9007199254740993", "-9007199254740992", "0.000000000000000001", "0.0000000000000000001",
		"123456789012345678", "1234567890123456789", "21.520000000000003", "1e308", "1e309", "-1e309", "1e-400", "-1e-400", "0.1", "100000000000000000000", "9007199254740992.0", "900719925474099.2", "1.7976931348623159e308"} {
		list = append(list, `{"sensors":{"a":`+n+`}}`, `{"timestamp":`+n+`,"sensors":{}}`, `{"metadata":{"a":`+n+`}}`)
	}
	for _, t := range []string{"2026-01-23T15:24:46.123456Z", "2026-01-23 15:24:46", "2026-01-23t15:24:46z", "2026-01-23T15:24:46+05:30", "2026-01-23T15:24:46.1-00:30", "2026-01-23T15:24:46.123456789", "2026-01-23T15:24:46.1234567890", "2026-01-23T15:24:46.",
		"2024-02-29T00:00:00Z", "2025-02-29T00:00:00Z", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00+01:00", "2262-12-31T23:59:59.999999Z", "2263-01-01T00:00:00Z", "2016-12-31T23:59:60Z", "2026-01-23T24:00:00Z", "2026-01-23T15:60:00Z", "2026-13-01T00:00:00Z", "2026-01-23", "", "now", "2026-01-23T15:24:46+0530", "2026-01-23T15:24:46Zx"} {
		list = append(list, `{"timestamp":"`+t+`","sensors":{"a":1}}`)
	}
	for _, t := range []string{"1769181886", "1769181886.123456", "1769181886123", "1769181886123.456", "1769181886123456", "1769181886123456789", "99999999999", "100000000000", "9246182399999999", "9246182400000000", "1.769181886e9", "1769181886123456e-6", "-1", "true", "{}", "null", "1e30", "1e-30", "0.000001", "0.0000009"} {
		list = append(list, `{"timestamp":`+t+`,"sensors":{"a":1}}`)
	}
	return list
}

// parsers compares a scanner that has seen other payloads with the slow path
// alone.
type parsers struct {
	scanner *Scanner
	slow    slowPath
	spare   []Message
}

func (p *parsers) agree(t *testing.T, device string, payload []byte) {
	t.Helper()
	want, wantErr := p.slow.payload(device, payload, 1_769_181_900_000_000, nil)
	for range 2 { // the second time the caches know everything
		got, err := p.scanner.Parse(device, payload, 1_769_181_900_000_000, p.spare[:0])
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("device %q, payload %q: error %v, want %v", device, payload, err, wantErr)
		}
		if err != nil {
			return
		}
		if !equalMessages(got, want) {
			t.Fatalf("device %q, payload %q:\n got %+v\nwant %+v", device, payload, got, want)
		}
		p.spare = got
	}
}

func equalMessages(a, b []Message) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if !bytes.Equal(x.Payload, y.Payload) || len(x.Readings) != len(y.Readings) || len(x.Attributes) != len(y.Attributes) {
			return false
		}
		for k := range x.Readings {
			if x.Readings[k] != y.Readings[k] {
				return false
			}
		}
		for k := range x.Attributes {
			if x.Attributes[k] != y.Attributes[k] {
				return false
			}
		}
		x.Payload, y.Payload, x.Readings, y.Readings, x.Attributes, y.Attributes = nil, nil, nil, nil, nil, nil
		if !reflect.DeepEqual(x, y) {
			return false
		}
	}
	return true
}

func TestFastAndSlowPathAgreeOnEveryForm(t *testing.T) {
	p := parsers{scanner: NewScanner()}
	for range 2 {
		for _, s := range seeds() {
			p.agree(t, "sensor-001", []byte(s))
			p.agree(t, "", []byte(s))
		}
	}
}

func FuzzParseAgrees(f *testing.F) {
	for _, s := range seeds() {
		f.Add("sensor-001", []byte(s))
		f.Add("", []byte(s))
	}
	f.Fuzz(func(t *testing.T, device string, payload []byte) {
		if device != "" && !ValidDeviceID(device) {
			device = "sensor-001"
		}
		p := parsers{scanner: NewScanner()}
		p.agree(t, device, payload)
	})
}

// TestFastAndSlowPathAgreeOnMutations keeps one scanner, with all that it
// expects and remembers, through payloads that differ a little from each other.
func TestFastAndSlowPathAgreeOnMutations(t *testing.T) {
	const rounds = 20_000
	const grammar = "{}[]:,\"\\ue0-.1a \n\xc3"
	r := rand.New(rand.NewPCG(7, 7))
	list := seeds()
	p := parsers{scanner: NewScanner()}
	for range rounds {
		payload := []byte(list[r.IntN(len(list))])
		if len(payload) > 1000 {
			continue
		}
		for range r.IntN(4) {
			at, end := r.IntN(len(payload)+1), 0
			end = at + r.IntN(min(len(payload)-at, 12)+1)
			switch part := payload[at:end]; r.IntN(5) {
			case 0: // cut
				payload = slices.Concat(payload[:at], payload[end:])
			case 1: // double
				payload = slices.Concat(payload[:end], part, payload[end:])
			case 2: // a part of another payload
				other := list[r.IntN(len(list))]
				from := r.IntN(len(other) + 1)
				payload = slices.Concat(payload[:at], []byte(other[from:from+r.IntN(min(len(other)-from, 30)+1)]), payload[end:])
			case 3: // a byte of the grammar
				payload = slices.Insert(payload, at, grammar[r.IntN(len(grammar))])
			case 4: // two elements
				payload = slices.Concat([]byte("["), payload, []byte(","), []byte(list[r.IntN(len(list))]), []byte("]"))
			}
			if len(payload) > 1000 {
				break
			}
		}
		p.agree(t, []string{"sensor-001", ""}[r.IntN(2)], payload)
	}
}
