package shard

import (
	"fmt"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// section3 is the message of DESIGN section 3, of one of many devices.
func section3(device int, i int) telemetry.Message {
	t := epoch2026 + int64(i)*second
	dec := func(m int64, scale uint8) telemetry.Value {
		return telemetry.Value{Kind: telemetry.KindDecimal, Mantissa: m + int64(i*7919+device)%50, Scale: scale}
	}
	return telemetry.Message{
		Device: fmt.Sprintf("sensor-%04d", device), Time: t, Received: t + 40_000,
		Readings: []telemetry.Reading{
			{Sensor: "temperature", Value: dec(2152, 2)}, {Sensor: "humidity", Value: dec(481, 1)},
			{Sensor: "pressure", Value: dec(10132, 1)}, {Sensor: "battery", Value: dec(935, 1)},
		},
		Attributes: []telemetry.Attribute{{Key: "firmware_version", Value: "1.2.3"}, {Key: "signal_strength", Value: "-61"}},
	}
}

// BenchmarkApply is the cost of one message on every replica: decode, dedup,
// last values, four detectors, bookkeeping of the flush.
func BenchmarkApply(b *testing.B) {
	for _, size := range []int{16, 256} {
		b.Run(fmt.Sprintf("block=%d", size), func(b *testing.B) {
			const devices, blocks = 1000, 400
			var data [][]byte
			n := 0
			for seq := range blocks {
				var ms []telemetry.Message
				for range size {
					ms = append(ms, section3(n%devices, n/devices))
					n++
				}
				data = append(data, encode(b, block.Header{Origin: "n0.00000001", Epoch: 1, Seq: uint64(seq + 1), Shard: 3}, ms...))
			}
			r := newRig(b)
			b.ReportAllocs()
			b.ResetTimer()
			index, applied := uint64(0), 0
			for applied < b.N {
				if int(index) == len(data) { // the same again would be repeats
					b.StopTimer()
					r, index = newRig(b), 0
					b.StartTimer()
				}
				index++
				if res := r.apply(index, 1, data[index-1]).(Result); res.Outcomes != nil || res.Status != StatusApplied {
					b.Fatalf("block %d: %+v", index, res)
				}
				applied += size
				if index%64 == 0 {
					_, _ = r.pending.flushed(telemetry.LaneLive, index, telemetry.Gap{})
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(applied), "ns/message")
		})
	}
}
