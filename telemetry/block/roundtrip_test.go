package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/telemetry"
)

var testHeader = Header{Namespace: 1, Origin: "n0.5f3a9c1e", Epoch: 3, Seq: 17_000, Shard: 5}

// tester is what testing.TB and rapid.T have in common.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

func encode(t tester, b *Builder, messages []telemetry.Message) []byte {
	t.Helper()
	b.Reset()
	for i := range messages {
		if got := b.Add(&messages[i]); got != i {
			t.Fatalf("message %d was put at position %d", i, got)
		}
	}
	data, err := b.Append(nil, testHeader)
	if err != nil {
		t.Fatalf("encode %d messages: %v", len(messages), err)
	}
	return data
}

// mustMatch decodes data and compares every message.
func mustMatch(t tester, d *Block, data []byte, want []telemetry.Message) {
	t.Helper()
	if err := d.Decode(data); err != nil {
		t.Fatalf("decode %d messages: %v", len(want), err)
	}
	header := testHeader
	header.Messages = uint32(len(want))
	if got, err := ParseHeader(data); err != nil || got != header || d.Header != header {
		t.Fatalf("header %+v and %+v, want %+v (%v)", got, d.Header, header, err)
	}
	if len(d.Messages) != len(want) {
		t.Fatalf("%d messages, want %d", len(d.Messages), len(want))
	}
	var m telemetry.Message
	for i := range want {
		d.Message(i, &m)
		if got, want := plain(m), plain(want[i]); !reflect.DeepEqual(got, want) {
			t.Fatalf("message %d:\n got %+v\nwant %+v", i, got, want)
		}
	}
}

// plain makes empty slices nil, a difference that a message does not have.
func plain(m telemetry.Message) telemetry.Message {
	if len(m.Readings) == 0 {
		m.Readings = nil
	}
	if len(m.Attributes) == 0 {
		m.Attributes = nil
	}
	if len(m.Payload) == 0 {
		m.Payload = nil
	}
	return m
}

func drawValue(t *rapid.T) telemetry.Value {
	mantissa := rapid.OneOf(rapid.Int64Range(-3000, 3000), rapid.Int64Range(-1<<53, 1<<53)).Draw(t, "mantissa")
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		return telemetry.Value{Kind: telemetry.KindInt64, Mantissa: mantissa}
	case 1:
		return telemetry.FloatValue(rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{math.Copysign(0, -1), 0, math.MaxFloat64, 5e-324, float64(float32(21.52))})).Draw(t, "float"))
	case 2:
		return telemetry.Value{Kind: telemetry.KindBool, Mantissa: mantissa & 1}
	}
	return telemetry.Value{Kind: telemetry.KindDecimal, Mantissa: mantissa, Scale: rapid.Uint8Range(1, 18).Draw(t, "scale")}
}

func drawMessage(t *rapid.T) telemetry.Message {
	instant := rapid.OneOf(rapid.Int64Range(1_769_000_000_000_000, 1_769_000_000_100_000), rapid.Just[int64](1_769_000_000_000_000), rapid.Int64Range(0, 9_246_182_399_999_999), rapid.Int64())
	name := rapid.OneOf(rapid.SampledFrom([]string{"temperature", "humidity", "a", "\u00e4"}), rapid.StringN(1, 8, 32))
	device := rapid.OneOf(rapid.SampledFrom([]string{"", "a", "sensor-7"}), rapid.StringMatching(`s-[0-9]{1,4}`), rapid.StringMatching(`[a-f0-9]{0,30}`))
	m := telemetry.Message{Device: device.Draw(t, "device"), Received: instant.Draw(t, "received")}
	if rapid.IntRange(0, 5).Draw(t, "quarantined") == 0 {
		m.Reason, m.Topic = rapid.StringN(1, 10, 40).Draw(t, "reason"), rapid.StringN(0, 10, 40).Draw(t, "topic")
		m.Payload = rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload")
		return m
	}
	m.Time = instant.Draw(t, "time")
	if m.NoTime = rapid.Bool().Draw(t, "no time"); m.NoTime && rapid.IntRange(0, 9).Draw(t, "equal") > 0 {
		m.Time = m.Received
	}
	m.Retry = rapid.Bool().Draw(t, "retry")
	if rapid.Bool().Draw(t, "dup") {
		binary.LittleEndian.PutUint64(m.Dup[4:], rapid.Uint64().Draw(t, "key"))
	}
	m.Nulls = rapid.SampledFrom([]uint32{0, 0, 1, math.MaxUint32}).Draw(t, "nulls")
	for range rapid.IntRange(0, 6).Draw(t, "readings") {
		m.Readings = append(m.Readings, telemetry.Reading{Sensor: name.Draw(t, "sensor"), Value: drawValue(t)})
	}
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "-61", "1.2.3", "0", "-0", "-0.0", "1.", ".5", "007", "1e5", "999999999999999", "9999999999999999", "-0.05", "1.50", "true", "null", "99999999999999.9"}), rapid.StringMatching(`-?[0-9]{1,17}(\.[0-9]{1,17})?`))
	for range rapid.IntRange(0, 4).Draw(t, "attributes") {
		m.Attributes = append(m.Attributes, telemetry.Attribute{Key: name.Draw(t, "attribute"), Value: text.Draw(t, "value")})
	}
	return m
}

func TestEveryMessageComesBackAsItWas(t *testing.T) {
	b, again := NewBuilder(), NewBuilder()
	var d Block
	rapid.Check(t, func(t *rapid.T) {
		messages := rapid.SliceOfN(rapid.Custom(drawMessage), 0, 40).Draw(t, "messages")
		data := encode(t, b, messages)
		mustMatch(t, &d, data, messages)
		if other := encode(t, again, messages); !bytes.Equal(other, data) {
			t.Fatalf("two builders wrote different bytes:\n%x\n%x", data, other)
		}
		mustMatch(t, d.Clone(), data, messages)
	})
}

// TestFleetsComeBackAsTheyWere has enough messages for exceptions, differences
// and compressed text.
func TestFleetsComeBackAsTheyWere(t *testing.T) {
	b := NewBuilder()
	var d Block
	for _, s := range benchShapes {
		for _, n := range []int{1, 2, 3, 7, 8, 100, 1000} {
			t.Run(fmt.Sprintf("%s/%d", s.name, n), func(t *testing.T) {
				messages := generate(n, s.shape, uint64(n))
				mustMatch(t, &d, encode(t, b, messages), messages)
			})
		}
	}
}

func TestIntegerColumnsAreLossless(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(0, 62).Draw(t, "bits")
		small := rapid.Int64Range(0, 1<<bits)
		start := rapid.Int64().Draw(t, "start")
		values := rapid.SliceOfN(rapid.OneOf(small, small, small, small, small, small, small, small, small, rapid.Int64()), 0, 200).Draw(t, "values")
		sum := rapid.Bool().Draw(t, "sum")
		for i := range values {
			if sum && i > 0 {
				values[i] += values[i-1]
			} else {
				values[i] += start
			}
		}
		var scratch []int64
		data := appendInts(nil, values, &scratch)
		got := make([]int64, len(values))
		r := reader{p: data}
		r.ints(got)
		if r.bad || len(r.p) > 0 || !reflect.DeepEqual(got, values) && len(values) > 0 {
			t.Fatalf("bad %v, %d bytes left\n got %d\nwant %d", r.bad, len(r.p), got, values)
		}
	})
}

func TestDecimalSpellingIsLossless(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.StringMatching(`-?[0-9]{0,18}(\.[0-9]{0,18})?`), rapid.String()).Draw(t, "text")
		if m, scale, ok := parseDecimal(text); ok {
			if got := string(telemetry.AppendDecimal(nil, m, scale)); got != text {
				t.Fatalf("%q became %d / 10^%d, written %q", text, m, scale, got)
			}
		}
	})
}

func TestUnknownColumnsAreSkipped(t *testing.T) {
	messages := generate(20, sectionThree, 1)
	data := encode(t, NewBuilder(), messages)
	data = appendColumn(data[:len(data)-4], columnTemplate, []byte("later"))
	data = appendColumn(data, 200, nil)
	data = binary.LittleEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
	var d Block
	mustMatch(t, &d, data, messages)
}

func TestDamageIsReported(t *testing.T) {
	messages := append(generate(20, sectionThree, 1), telemetry.Message{Device: "x", Received: 1, Reason: "r", Payload: []byte("p")})
	data := encode(t, NewBuilder(), messages)
	var d Block
	for i := range data {
		if err := d.Decode(data[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d of %d: error %v", i, len(data), err)
		}
		for bit := range 8 {
			data[i] ^= 1 << bit
			if err := d.Decode(data); !errors.Is(err, ErrCorrupt) && !(i == 1 && errors.Is(err, ErrVersion)) {
				t.Fatalf("bit %d of byte %d flipped: error %v", bit, i, err)
			}
			data[i] ^= 1 << bit
		}
	}
	mustMatch(t, &d, data, messages)
}

func TestLimitsAreRefused(t *testing.T) {
	b := NewBuilder()
	if _, err := b.Append(nil, Header{Origin: strings.Repeat("o", 256)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("long origin: error %v", err)
	}
	m := telemetry.Message{Device: "a"}
	for range MessagesMax + 1 {
		b.Add(&m)
	}
	dst := []byte("kept")
	if got, err := b.Append(dst, Header{}); !errors.Is(err, ErrTooLarge) || string(got) != "kept" {
		t.Errorf("%d messages: error %v, returned %q", b.Len(), err, got)
	}
	b.Reset()
	m = telemetry.Message{Device: "a", Reason: "r", Payload: make([]byte, TextBytesMax)}
	b.Add(&m)
	if _, err := b.Append(nil, Header{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large payload: error %v", err)
	}
}

func TestSizeIsAnUpperEstimate(t *testing.T) {
	for _, s := range benchShapes {
		b := NewBuilder()
		data := encode(t, b, generate(256, s.shape, 3))
		if b.Size() < len(data) || b.Size() > 40*len(data) {
			t.Errorf("%s: size %d, encoded %d", s.name, b.Size(), len(data))
		}
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	messages := generate(256, sectionThree, 1)
	b := NewBuilder()
	data := encode(t, b, messages)
	var d Block
	mustMatch(t, &d, data, messages)
	if n := testing.AllocsPerRun(100, func() {
		b.Reset()
		for i := range messages {
			b.Add(&messages[i])
		}
		data, _ = b.Append(data[:0], testHeader)
	}); n > 0 {
		t.Errorf("encoding allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { _ = d.Decode(data) }); n > 0 {
		t.Errorf("decoding allocates %v times", n)
	}
}

func TestBytesDependOnNothingButTheMessages(t *testing.T) {
	used := NewBuilder()
	for round := range uint64(2) {
		for _, s := range benchShapes {
			messages := generate(300, s.shape, round)
			if got, want := encode(t, used, messages), encode(t, NewBuilder(), messages); !bytes.Equal(got, want) {
				t.Errorf("%s, round %d: a used builder wrote %d bytes that differ from the %d of a new one", s.name, round, len(got), len(want))
			}
		}
	}
}

// TestDigitsAreReadAtOnce compares the two ways to take an id apart.
func TestDigitsAreReadAtOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		head := rapid.StringMatching(`([a-z0-9:/;-]{0,12}[a-z:/;-])?`).Draw(t, "head")
		tail := rapid.StringMatching(`[0-9:/;]{1,9}`).Draw(t, "tail")
		digits := byte(rapid.IntRange(1, 10).Draw(t, "digits"))
		id := head + tail
		number, ok := sameDigits(id, head+string(rune(digits)))
		n, want := splitDigits(id)
		if ok != (n == len(tail) && n == int(digits) && n <= 8 && len(id) >= 8) || ok && number != want {
			t.Fatalf("%q with %d digits: got %d, %v; it ends with the %d digits of %d", id, digits, number, ok, n, want)
		}
	})
}

// TestWordsTellShortStringsApart changes and lengthens strings of every length
// that words are used for.
func TestWordsTellShortStringsApart(t *testing.T) {
	d := newDict()
	seen := map[string]uint32{}
	check := func(s string) {
		id := d.id(s)
		if want, ok := seen[s]; ok && want != id || !ok && id != uint32(len(seen)) || d.at(id) != s {
			t.Fatalf("%q has number %d and is %q", s, id, d.at(id))
		}
		seen[s] = id
	}
	for n := range wordsMax + 3 {
		for _, c := range []byte{0, 'a', 0xff} {
			s := bytes.Repeat([]byte{c}, n)
			check(string(s))
			for i := range s {
				s[i] = 'b'
				check(string(s))
				check(string(s))
				s[i] = c
			}
		}
	}
}
