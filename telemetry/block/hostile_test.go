package block

import (
	"encoding/binary"
	"hash/crc32"
	"runtime"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
)

// hostileSeed has every column, every kind and every way to write one.
func hostileSeed() []telemetry.Message {
	messages := append(generate(24, sectionThree, 1), generate(8, fleetShape{devices: 8, id: "x%d-y"}, 2)...)
	value := telemetry.Value{Kind: telemetry.KindBool, Mantissa: 1}
	for i := range messages {
		switch m := &messages[i]; i % 8 {
		case 1:
			m.Readings = append(m.Readings, telemetry.Reading{Sensor: "door", Value: value}, telemetry.Reading{Sensor: "ratio", Value: telemetry.FloatValue(1 / float64(i))})
		case 2:
			m.Nulls, m.Dup = uint32(i), telemetry.DupKey{byte(i)}
		case 3:
			m.NoTime, m.Time = true, m.Received
		case 4:
			messages[i] = telemetry.Message{Device: m.Device, Received: m.Received, Reason: "not JSON", Topic: "devices/a/telemetry", Payload: []byte("{{{")}
		case 5:
			m.Readings[0].Value = telemetry.Value{Kind: telemetry.KindDecimal, Mantissa: 20, Scale: uint8(i % 19)}
		}
	}
	return messages
}

// parts splits a block into everything before its columns and the columns.
func parts(t *testing.T, data []byte) (head []byte, ids []byte, bodies [][]byte) {
	r := reader{p: data[:len(data)-4]}
	if _, _, err := r.header(); err != nil {
		t.Fatal(err)
	}
	head = data[:len(data)-4-len(r.p)]
	for len(r.p) > 0 {
		ids = append(ids, r.byte())
		bodies = append(bodies, r.take(int(r.uvarint(1<<20))))
	}
	return head, ids, bodies
}

func join(head, ids []byte, bodies [][]byte) []byte {
	data := append([]byte(nil), head...)
	for i, body := range bodies {
		data = appendColumn(data, ids[i], body)
	}
	return binary.LittleEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
}

// TestHostileColumnsNeverPanic changes every byte of every column to several
// values and cuts the column everywhere, with a good directory and checksum
// around it, and reads all that is accepted.
func TestHostileColumnsNeverPanic(t *testing.T) {
	data := encode(t, NewBuilder(), hostileSeed())
	var d Block
	mustMatch(t, &d, data, hostileSeed())
	head, ids, bodies := parts(t, data)
	accepted := 0
	try := func() {
		if d.Decode(join(head, ids, bodies)) != nil {
			return
		}
		accepted++
		var m telemetry.Message
		for i := range d.Messages {
			d.Message(i, &m)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i, body := range bodies {
		for at := range body {
			bodies[i] = body[:at]
			try()
			changed := append([]byte(nil), body...)
			bodies[i] = changed
			for _, c := range []byte{0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xff, body[at] ^ 0x80, body[at] + 1, body[at] - 1} {
				changed[at] = c
				try()
			}
			changed[at] = body[at]
			bodies[i] = append(changed[:at:at], append([]byte{0xff, 0xff, 0x3f}, body[at:]...)...)
			try()
		}
		bodies[i] = body
	}
	runtime.ReadMemStats(&after)
	// What one Decode may allocate is bounded, and kept for the next.
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 512<<20 {
		t.Errorf("memory grew by %d MiB", grown>>20)
	}
	if accepted == 0 {
		t.Error("no changed block was accepted: the test does not reach the columns")
	}
	mustMatch(t, &d, data, hostileSeed())
}
