package block

import (
	"strconv"
	"testing"
)

var benchShapes = []struct {
	name  string
	shape fleetShape
}{
	{"section3", sectionThree},
	{"millis", fleetShape{devices: 4096, id: "sensor-%06d", millis: true}},
	{"uuid", fleetShape{devices: 4096, id: "uuid"}},
	{"places", fleetShape{devices: 4096, id: "site-7.line-%d.press"}},
	{"arrays", fleetShape{devices: 4096, id: "sensor-%06d", batch: 50}},
	{"floats", fleetShape{devices: 4096, id: "sensor-%06d", floats: true}},
	{"faults", fleetShape{devices: 4096, id: "sensor-%06d", faults: true}},
}

func BenchmarkEncode(b *testing.B) {
	for _, s := range benchShapes {
		for _, n := range []int{1, 16, 256} {
			if n != 256 && s.name != "section3" {
				continue
			}
			b.Run(s.name+"/"+strconv.Itoa(n), func(b *testing.B) {
				messages := generate(8192, s.shape, 1)
				builder := NewBuilder()
				var dst []byte
				bytes, count, at := 0, 0, 0
				b.ReportAllocs()
				for b.Loop() {
					builder.Reset()
					for i := range messages[at : at+n] {
						builder.Add(&messages[at+i])
					}
					if at += n; at+n > len(messages) {
						at = 0
					}
					var err error
					if dst, err = builder.Append(dst[:0], Header{Origin: "n0.5f3a9c1e", Epoch: 3, Seq: 17_000, Shard: 5}); err != nil {
						b.Fatal(err)
					}
					bytes += len(dst)
					count += n
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(count), "ns/msg")
				b.ReportMetric(float64(bytes)/float64(count), "B/msg")
			})
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	messages := generate(8192, sectionThree, 1)
	builder := NewBuilder()
	i := 0
	for b.Loop() {
		if i&255 == 0 {
			builder.Reset()
		}
		builder.Add(&messages[i&8191])
		i++
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, s := range benchShapes {
		b.Run(s.name, func(b *testing.B) {
			messages := generate(256, s.shape, 1)
			builder := NewBuilder()
			for i := range messages {
				builder.Add(&messages[i])
			}
			data, err := builder.Append(nil, Header{Origin: "n0.5f3a9c1e", Epoch: 3, Seq: 17_000, Shard: 5})
			if err != nil {
				b.Fatal(err)
			}
			var d Block
			b.ReportAllocs()
			count := 0
			for b.Loop() {
				if err := d.Decode(data); err != nil {
					b.Fatal(err)
				}
				count += len(messages)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(count), "ns/msg")
		})
	}
}
