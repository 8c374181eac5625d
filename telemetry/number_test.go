package telemetry

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNumbersEqualParseFloatAndKeepTheirDigits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(
			rapid.StringMatching(`-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?`),
			rapid.StringMatching(`-?(0|[1-9][0-9]{0,4})(\.[0-9]{1,12})?`),
			rapid.Map(rapid.Float64(), func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }).Filter(func(s string) bool { return !strings.Contains(s, "Inf") }),
		).Draw(t, "number")
		want, err := strconv.ParseFloat(text, 64)
		slow, ok := parseNumber([]byte(text))
		fast, end, fastOK := value([]byte(text), 0)
		if ok != (err == nil) || fastOK != ok || ok && (fast != slow || end != len(text)) {
			t.Fatalf("%s: slow %+v %v, fast %+v %v to %d, error %v", text, slow, ok, fast, fastOK, end, err)
		}
		if !ok {
			return
		}
		if math.Float64bits(slow.Float64()) != math.Float64bits(want) {
			t.Fatalf("%s: %+v is %v, want %v", text, slow, slow.Float64(), want)
		}
		if slow.Kind != KindFloat64 && spell(slow) != text {
			t.Fatalf("%s: %+v is spelled %s", text, slow, spell(slow))
		}
	})
}

// spell writes a value as the device did.
func spell(v Value) string {
	digits := fmt.Sprintf("%0*d", int(v.Scale)+1, v.Mantissa)
	if v.Mantissa < 0 {
		digits = fmt.Sprintf("-%0*d", int(v.Scale)+1, -v.Mantissa)
	}
	if v.Kind == KindDecimal {
		return digits[:len(digits)-int(v.Scale)] + "." + digits[len(digits)-int(v.Scale):]
	}
	return digits
}

func TestNumbersOfEveryKind(t *testing.T) {
	for text, want := range map[string]Value{
		"0":                     {Kind: KindInt64},
		"-61":                   {Kind: KindInt64, Mantissa: -61},
		"9007199254740992":      {Kind: KindInt64, Mantissa: 1 << 53},
		"-9007199254740992":     {Kind: KindInt64, Mantissa: -1 << 53},
		"9007199254740993":      FloatValue(1 << 53),
		"21.50":                 {Kind: KindDecimal, Mantissa: 2150, Scale: 2},
		"0.000000000000000001":  {Kind: KindDecimal, Mantissa: 1, Scale: 18},
		"0.0":                   {Kind: KindDecimal, Scale: 1},
		"0.0000000000000000001": FloatValue(1e-19),
		"-0":                    FloatValue(math.Copysign(0, -1)),
		"-0.0":                  FloatValue(math.Copysign(0, -1)),
		"1e3":                   FloatValue(1000),
		"21.520000000000003":    FloatValue(21.520000000000003),
		"1e-400":                FloatValue(0),
		"true":                  {Kind: KindBool, Mantissa: 1},
		"false":                 {Kind: KindBool},
	} {
		m := parseOne(t, `{"sensors":{"a":`+text+`}}`)
		if m.Reason != "" || len(m.Readings) != 1 || m.Readings[0].Value != want {
			t.Errorf("%s: got %+v, want %+v", text, m, want)
		}
	}
	for _, text := range []string{"1e309", "-1e400", "1" + strings.Repeat("0", 309)} {
		if m := parseOne(t, `{"sensors":{"a":`+text+`}}`); m.Reason != `sensor "a": number is out of range` {
			t.Errorf("%.20s: got reason %q", text, m.Reason)
		}
	}
}

func TestValuesAreWrittenAsTheirDevicesWroteThem(t *testing.T) {
	for _, text := range []string{"0", "-0.5", "21.50", "-17", "1e+22", "1.5e-09", "0.001"} {
		v, ok := parseNumber([]byte(text))
		if got := string(v.AppendJSON(nil)); !ok || got != text {
			t.Errorf("%s comes out as %s", text, got)
		}
	}
	for want, v := range map[string]Value{"true": {Kind: KindBool, Mantissa: 1}, "false": {Kind: KindBool}, "null": FloatValue(math.NaN())} {
		if got := string(v.AppendJSON(nil)); got != want {
			t.Errorf("%+v comes out as %s, want %s", v, got, want)
		}
	}
}
