package shard

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// sender is one origin as the model sees it: what it has sealed, and how much of
// that it knows to be applied.
type sender struct {
	name   string
	epoch  uint64
	sealed [][]byte // of this epoch
	ids    [][]int  // messages of each
}

// model is what the shard must hold after all: every message once, each
// device's in the order in which its sender sealed them.
type model struct {
	rig     *rig
	senders []*sender
	applied map[string]int // blocks of sender/epoch that are applied
	rows    []string       // expected, in log order
	made    int
}

func (m *model) seal(t *rapid.T) {
	s := rapid.SampledFrom(m.senders).Draw(t, "sender")
	n := rapid.IntRange(1, 3).Draw(t, "messages")
	var ms []telemetry.Message
	var ids []int
	for range n {
		m.made++
		ids = append(ids, m.made)
		// Time is the number of the message: all of them are different readings.
		ms = append(ms, message("d-"+s.name, epoch2026+int64(m.made), float64(m.made)))
	}
	s.sealed = append(s.sealed, encode(t, block.Header{Origin: s.name, Epoch: s.epoch, Seq: uint64(len(s.sealed) + 1), Shard: 3}, ms...))
	s.ids = append(s.ids, ids)
}

// deliver brings any block of any sender to the log: too early, late, again.
func (m *model) deliver(t *rapid.T) {
	s := rapid.SampledFrom(m.senders).Draw(t, "sender")
	if len(s.sealed) == 0 {
		return
	}
	i := rapid.IntRange(0, len(s.sealed)-1).Draw(t, "block")
	res, ok := m.rig.entry(s.sealed[i]).(Result)
	if !ok {
		t.Fatalf("a block was not answered with a Result")
	}
	key := fmt.Sprintf("%s/%d", s.name, s.epoch)
	done := m.applied[key]
	switch {
	case i > done:
		if res.Status != StatusGap || res.Next != uint64(done+1) && res.Next != 1 {
			t.Fatalf("block %d with %d applied: %+v, want a gap", i+1, done, res)
		}
	case i == done:
		if res.Status != StatusApplied || res.Index != m.rig.next || res.Outcomes != nil {
			t.Fatalf("block %d in its turn: %+v, want applied at %d", i+1, res, m.rig.next)
		}
		m.applied[key]++
		for _, id := range s.ids[i] {
			m.rows = append(m.rows, fmt.Sprintf("d-%s %d", s.name, epoch2026+int64(id)))
		}
	case done-i <= originResultsMax:
		if res.Status != StatusApplied || res.Index >= m.rig.next {
			t.Fatalf("block %d again: %+v, want its first answer", i+1, res)
		}
	default:
		if res.Status != StatusUnknown {
			t.Fatalf("block %d long after: %+v, want unknown", i+1, res)
		}
	}
}

// restart begins a new epoch: what was not applied is lost with its process.
func (m *model) restart(t *rapid.T) {
	s := rapid.SampledFrom(m.senders).Draw(t, "sender")
	s.epoch++
	s.sealed, s.ids = nil, nil
}

// snapshot replaces the machine by one that is restored from its snapshot.
func (m *model) snapshot(t *rapid.T) {
	before := m.rig.snapshotBytes()
	m.rig.machine = restoreMachine(t, before)
	if after := m.rig.snapshotBytes(); !bytes.Equal(before, after) {
		t.Fatalf("a restored machine gives another snapshot: %d and %d bytes", len(before), len(after))
	}
}

func (m *model) flush(t *rapid.T) {
	p := &m.rig.pending
	e := flushEntry{From: p.watermarks.To[0], To: p.last()}
	if e.To == e.From {
		return
	}
	if err := m.rig.entry(e.encode()); err != nil {
		t.Fatalf("flush: %v", err)
	}
	m.rows = nil
	if rapid.Bool().Draw(t, "stored") {
		p.stored(e.To)
	}
}

func (m *model) check(t *rapid.T) {
	var got []string
	for _, row := range m.rig.rowsOf(t) {
		got = append(got, row[:len(fmt.Sprintf("d-%s %d", m.senders[0].name, epoch2026))])
	}
	if !slices.Equal(got, m.rows) {
		t.Fatalf("pending rows %q, want %q", got, m.rows)
	}
	if int(m.rig.pending.waiting()) != len(m.rows) {
		t.Fatalf("%d rows counted, want %d", m.rig.pending.waiting(), len(m.rows))
	}
	c := m.rig.counts
	total := 0
	for _, n := range m.applied {
		total += n
	}
	if c.Applied < uint64(total) || c.Duplicate != 0 {
		t.Fatalf("counts %+v with %d blocks applied", c, total)
	}
}

func TestEveryMessageIsAppliedOnceAndInOrderWhateverIsSentAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{rig: newRig(t), applied: map[string]int{}}
		for _, name := range []string{"n0.00000001", "n1.00000001", "n2.00000001"} {
			m.senders = append(m.senders, &sender{name: name, epoch: 1})
		}
		t.Repeat(map[string]func(*rapid.T){
			"seal": m.seal, "deliver": m.deliver, "deliver2": m.deliver, "restart": m.restart,
			"snapshot": m.snapshot, "flush": m.flush, "": m.check,
		})
	})
}

// storm draws messages that touch every part of the state.
func storm(t *rapid.T, at *int64) []telemetry.Message {
	var ms []telemetry.Message
	for range rapid.IntRange(1, 6).Draw(t, "messages") {
		*at += rapid.Int64Range(0, 90*second).Draw(t, "pause")
		dev := rapid.SampledFrom([]string{"a", "b", "c", "dd"}).Draw(t, "device")
		m := message(dev, *at-rapid.Int64Range(0, 3).Draw(t, "late"))
		for range rapid.IntRange(0, 4).Draw(t, "readings") {
			m.Readings = append(m.Readings, telemetry.Reading{
				Sensor: rapid.SampledFrom(sensorNames[:]).Draw(t, "sensor"),
				Value:  telemetry.FloatValue(float64(rapid.IntRange(0, 3).Draw(t, "value"))),
			})
		}
		switch rapid.IntRange(0, 9).Draw(t, "kind") {
		case 0:
			m = telemetry.Message{Device: dev, Received: *at, Reason: "bad", Topic: "t", Payload: []byte{1}, Dup: telemetry.DupKey{1, byte(*at)}}
		case 1:
			m.NoTime, m.Time, m.Dup, m.Retry = true, m.Received, telemetry.DupKey{1, byte(*at % 4)}, *at%2 == 0
		case 2:
			m.Attributes = []telemetry.Attribute{{Key: "fw", Value: fmt.Sprint(*at % 3)}, {Key: "rssi", Value: "-61"}}
		case 3:
			m.Time += 3600 * second
		}
		ms = append(ms, m)
	}
	return ms
}

// TestReplicasAgreeWhereverTheyWereRestored applies one log on two machines, of
// which one is restored from its own snapshot at random places.
func TestReplicasAgreeWhereverTheyWereRestored(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := newRig(t), newRig(t)
		at, seq := epoch2026, [2]uint64{}
		for range rapid.IntRange(1, 40).Draw(t, "entries") {
			var data []byte
			switch rapid.IntRange(0, 9).Draw(t, "entry") {
			case 0:
				data = flushEntry{From: a.pending.watermarks.To[0], To: a.pending.last()}.encode()
			case 1:
				data = timeEntry(at, 0)
			case 2:
				data = quarantineRemoveEntry([]uint64{rapid.Uint64Range(0, 9).Draw(t, "id")})
			default:
				i := rapid.IntRange(0, 1).Draw(t, "origin")
				seq[i]++
				data = encode(t, block.Header{Origin: fmt.Sprintf("n%d.00000001", i), Epoch: 1, Seq: seq[i], Shard: 3}, storm(t, &at)...)
			}
			x, y := a.entry(data), b.entry(data)
			if fmt.Sprint(x) != fmt.Sprint(y) {
				t.Fatalf("entry %d was answered with %v and %v", a.next, x, y)
			}
			if fmt.Sprint(a.takeEvents()) != fmt.Sprint(b.takeEvents()) {
				t.Fatalf("entry %d gave other events", a.next)
			}
			if rapid.IntRange(0, 4).Draw(t, "restore") == 0 {
				b.machine = restoreMachine(t, b.snapshotBytes())
			}
			if a.digest() != b.digest() {
				t.Fatalf("digests differ after entry %d", a.next)
			}
		}
		if x, y := a.rowsOf(t), b.rowsOf(t); !slices.Equal(x, y) {
			t.Fatalf("pending rows differ:\n%q\n%q", x, y)
		}
		if !bytes.Equal(a.snapshotBytes(), b.snapshotBytes()) {
			t.Fatal("snapshots differ")
		}
	})
}
