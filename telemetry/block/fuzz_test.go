package block

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
)

// FuzzDecode gives Decode hostile blocks with good checksums. What it accepts
// must be consistent enough to materialise every message.
func FuzzDecode(f *testing.F) {
	b := NewBuilder()
	for _, s := range benchShapes {
		data := encode(f, b, generate(12, s.shape, 1))
		f.Add(data[:len(data)-4])
	}
	mixed := generate(3, sectionThree, 1)
	mixed[0].Reason, mixed[0].Topic, mixed[0].Payload = "not JSON", "devices/a/telemetry", []byte("{")
	mixed[1].Nulls, mixed[1].Dup, mixed[1].Readings[0].Value = 3, telemetry.DupKey{1}, telemetry.Value{Kind: telemetry.KindInt64, Mantissa: 7}
	data := encode(f, b, mixed)
	f.Add(data[:len(data)-4])
	f.Fuzz(func(t *testing.T, body []byte) {
		data := binary.LittleEndian.AppendUint32(body[:len(body):len(body)], crc32.Checksum(body, castagnoli))
		var d Block
		if err := d.Decode(data); err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		var m telemetry.Message
		for i := range d.Messages {
			d.Message(i, &m)
		}
	})
}

// FuzzRoundTrip parses payloads as a scanner does, and packs what comes out.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte(`{"device_id":"a","timestamp":1769181886.5,"sensors":{"t":21.50,"h":1e5,"ok":true,"s":"on","n":null},"metadata":{"fw":"1.2","rssi":-61}}`))
	f.Add([]byte(`[{"device_id":"a","sensors":{"t":1}},{"device_id":"b","sensors":{"t":[]}},7]`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		messages, err := telemetry.NewScanner().Parse("", payload, 1_769_181_886_000_000, nil)
		if err != nil {
			return
		}
		var d Block
		mustMatch(t, &d, encode(t, NewBuilder(), messages), messages)
	})
}
