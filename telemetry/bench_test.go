package telemetry

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// fleet writes n payloads of the documented form from as many devices.
func fleet(n int, sep string) (devices []string, payloads [][]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	for range n {
		device := fmt.Sprintf("sensor-%06d", r.IntN(1_000_000))
		devices = append(devices, device)
		s := sep
		payloads = append(payloads, fmt.Appendf(nil, `{"device_id":%s"%s",%s"timestamp":%s"2026-01-23T15:%02d:%02d.%06d",%s"sensors":%s{"temperature":%s%.2f,%s"humidity":%s%.1f,%s"pressure":%s%.1f,%s"battery":%s%.1f},%s"metadata":%s{"firmware_version":%s"1.2.%d",%s"signal_strength":%s%d}}`,
			s, device, s, s, 24+r.IntN(2), r.IntN(60), r.IntN(1_000_000), s, s, s, 15+15*r.Float64(), s, s, 30+40*r.Float64(), s, s, 1000+30*r.Float64(), s, s, 100*r.Float64(), s, s, s, r.IntN(3), s, s, -30-r.IntN(70)))
	}
	return devices, payloads
}

func benchmarkParse(b *testing.B, sep string) {
	devices, payloads := fleet(4096, sep)
	s := NewScanner()
	var dst []Message
	var err error
	b.SetBytes(int64(len(payloads[0])))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if dst, err = s.Parse(devices[i&4095], payloads[i&4095], 1, dst[:0]); err != nil || dst[0].Reason != "" {
			b.Fatal(err, dst[0].Reason)
		}
		i++
	}
}

func BenchmarkParse(b *testing.B)       { benchmarkParse(b, "") }
func BenchmarkParseSpaced(b *testing.B) { benchmarkParse(b, " ") }

// BenchmarkParseModels alternates between device models, one with nested sensors
// and escapes.
func BenchmarkParseModels(b *testing.B) {
	payloads := [][]byte{[]byte(sectionThree), []byte(`{"device_id":"sensor-001","timestamp":1769181886.5,"sensors":{"env":{"in":{"t":21.5},"out":{"t":-3}},"caf\u00e9":1,"door":"open"},"metadata":{"ort":"B\u00fcro"}}`)}
	s := NewScanner()
	var dst []Message
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		dst, _ = s.Parse("sensor-001", payloads[i&1], 1, dst[:0])
		if dst[0].Reason != "" {
			b.Fatal(dst[0].Reason)
		}
		i++
	}
}

func BenchmarkParseSlowPath(b *testing.B) {
	devices, payloads := fleet(4096, "")
	var s slowPath
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := s.payload(devices[i&4095], payloads[i&4095], 1, nil); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
