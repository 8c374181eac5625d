package shard

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

const second = 1_000_000 // microseconds

// epoch2026 is where the devices of these tests begin to measure.
const epoch2026 = int64(1_767_225_600) * second

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func testDetector() *anomaly.Detector { return anomaly.New(anomaly.DefaultParams()) }

// message is a message of four sensors, the shape of DESIGN section 3.
func message(device string, t int64, values ...float64) telemetry.Message {
	m := telemetry.Message{Device: device, Time: t, Received: t + 5_000}
	for i, v := range values {
		m.Readings = append(m.Readings, telemetry.Reading{Sensor: sensorNames[i], Value: telemetry.FloatValue(v)})
	}
	return m
}

var sensorNames = [...]string{"temperature", "humidity", "pressure", "battery", "co2", "light"}

var builders = sync.Pool{New: func() any { return block.NewBuilder() }}

func encode(tb tester, h block.Header, ms ...telemetry.Message) []byte {
	tb.Helper()
	b := builders.Get().(*block.Builder) // a new one's encoder costs milliseconds
	defer builders.Put(b)
	b.Reset()
	for i := range ms {
		b.Add(&ms[i])
	}
	data, err := b.Append(nil, h)
	if err != nil {
		tb.Fatalf("encode block: %v", err)
	}
	return data
}

// rig is a machine with a log in front of it.
type rig struct {
	tb tester
	*machine
	seq  map[string]uint64
	next uint64
	log  map[uint64][]byte
}

func newRig(tb tester) *rig {
	return &rig{tb: tb, machine: newMachine(3, testDetector()), seq: map[string]uint64{}, log: map[uint64][]byte{}}
}

// entry appends one entry to the log and applies it.
func (r *rig) entry(data []byte) any {
	r.next++
	r.log[r.next] = data
	return r.apply(r.next, 1, data)
}

// block applies the messages as the next block of origin n0.
func (r *rig) block(ms ...telemetry.Message) Result {
	r.seq["n0.00000001"]++
	return r.blockAs("n0.00000001", 1, r.seq["n0.00000001"], ms...)
}

func (r *rig) blockAs(origin string, epoch, seq uint64, ms ...telemetry.Message) Result {
	r.tb.Helper()
	data := encode(r.tb, block.Header{Origin: origin, Epoch: epoch, Seq: seq, Shard: 3}, ms...)
	res, ok := r.entry(data).(Result)
	if !ok {
		r.tb.Fatalf("a block was not answered with a Result")
	}
	return res
}

// snapshotBytes is the machine as a snapshot holds it.
func (r *rig) snapshotBytes() []byte {
	r.tb.Helper()
	return snapshotOf(r.tb, &fsm{machine: r.machine})
}

func snapshotOf(tb tester, f *fsm) []byte {
	tb.Helper()
	s, err := f.Snapshot()
	if err != nil {
		tb.Fatalf("snapshot: %v", err)
	}
	var b bytes.Buffer
	if err := s.(*snapshot).write(&b); err != nil {
		tb.Fatalf("write snapshot: %v", err)
	}
	s.Release()
	return b.Bytes()
}

// unpacked is a snapshot's sections.
func unpacked(tb tester, snap []byte) []byte {
	tb.Helper()
	z, err := newUnpacker(bytes.NewReader(snap[len(snapshotMagic):]))
	if err != nil {
		tb.Fatal(err)
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// packed makes a snapshot of sections.
func packed(tb tester, sections []byte) []byte {
	tb.Helper()
	b := bytes.NewBufferString(snapshotMagic)
	z, err := newPacker(b)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := z.Write(sections); err != nil {
		tb.Fatal(err)
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func notInLog(uint64, uint64) (uint64, bool) { return 0, false }

func restoreMachine(tb tester, b []byte) *machine {
	tb.Helper()
	m := newMachine(3, testDetector())
	if err := m.restore(bytes.NewReader(b), notInLog, func() {}); err != nil {
		tb.Fatalf("restore: %v", err)
	}
	return m
}

// rows are the readings above the watermark that will become rows, as text, in
// log order.
func (m *machine) rowsOf(tb tester) []string {
	tb.Helper()
	var out []string
	f := &flusher{shard: &Shard{fsm: &fsm{machine: m}}}
	var b block.Block
	for p := range m.pending.between(m.pending.watermarks.To[telemetry.LaneLive], 1<<62).all() {
		err := f.eachReading(p, &b, func(e *block.Entry, rd *block.Reading, k mark) {
			out = append(out, fmt.Sprintf("%s %d %s=%v q%d s%v", b.Devices[e.Device], e.Time, b.Sensors[rd.Sensor], rd.Value.Float64(), k.quality, k.score))
		})
		if err != nil {
			tb.Fatalf("pending block %d: %v", p.index, err)
		}
	}
	return out
}

// tester is the part of testing.TB that rapid.T has too.
type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// rotSnapshots flips a bit in a file of every snapshot below a node's directory and
// returns how many there are.
func rotSnapshots(t *testing.T, dir, file string) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "shards", "*", "snapshots", "*", file))
	if err != nil || len(names) == 0 {
		t.Fatalf("snapshots %v, %v", names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 0x10
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return len(names)
}
