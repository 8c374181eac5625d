package shard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/telemetry"
)

// feedCalm lets a device report so many messages of quiet noise, a minute apart,
// and returns the time of the last.
func feedCalm(r *rig, device string, from int64, n int, sensors int) int64 {
	at := from
	for i := range n {
		at += 60 * second
		values := make([]float64, sensors)
		for k := range values {
			values[k] = 20 + float64((i+31*k)*7919%13)/10
		}
		r.block(message(device, at, values...))
	}
	return at
}

func named(events []Event, cause string, t anomaly.Transition) *telemetry.Anomaly {
	for i := range events {
		if events[i].Anomaly.Cause == cause && events[i].Transition == t {
			return &events[i].Anomaly
		}
	}
	return nil
}

func TestSensorsThatBreakTogetherAreOneAnomalyWithShares(t *testing.T) {
	r := newRig(t)
	at := feedCalm(r, "d1", epoch2026, 2000, 3)
	r.takeEvents()
	for range 3 {
		at += 60 * second
		r.block(message("d1", at, 95, 95, 20.3))
	}
	opened := 0
	var last telemetry.Anomaly
	for _, e := range r.takeEvents() {
		if e.Transition == anomaly.Opened {
			opened++
		}
		last = e.Anomaly
	}
	if opened != 1 || last.Shares == "" || last.Severity < 50 {
		t.Fatalf("%d anomalies opened, the last is %+v", opened, last)
	}
	d, err := (&Shard{fsm: &fsm{machine: r.machine}}).Device("d1")
	if err != nil || len(d.Open) != 1 || d.Open[0].ID != last.ID {
		t.Errorf("device %+v, error %v, want its open anomaly", d.Open, err)
	}
}

// A device is missed when it stays away for three times its usual gap, once, and
// back with its next message. Nobody is missed before the rate is known.
func TestSilenceIsOneAnomalyUntilTheDeviceReports(t *testing.T) {
	r := newRig(t)
	at := feedCalm(r, "d1", epoch2026, 100, 1)
	r.block(message("new", at, 20))
	received := at + 5_000
	for _, c := range []struct {
		after int64
		due   bool
	}{{60 * second, false}, {179 * second, false}, {181 * second, true}} {
		if got := r.silentDue(received+c.after, epoch2026); got != c.due {
			t.Fatalf("%d s after the last message: due %v, want %v", c.after/second, got, c.due)
		}
	}
	if r.silentDue(received+200*second, received+100*second) {
		t.Error("due although the leader has listened for 100 s only")
	}
	r.takeEvents()
	r.entry(timeEntry(received+300*second, epoch2026))
	a := named(r.takeEvents(), "missing data", anomaly.Opened)
	if a == nil || a.Device != "d1" || a.Value != 300 || a.Expected != 60 || a.High != 180 {
		t.Fatalf("anomaly %+v, want d1 missing for 300 s, usually 60", a)
	}
	r.entry(timeEntry(received+900*second, epoch2026))
	if ev := r.takeEvents(); len(ev) > 0 {
		t.Errorf("noticed twice: %+v", ev)
	}
	copied := restoreMachine(t, r.snapshotBytes())
	if copied.digest() != r.digest() {
		t.Error("the restored state differs")
	}
	r.block(message("d1", at+1000*second, 20))
	if c := named(r.takeEvents(), "missing data", anomaly.Closed); c == nil || c.ID != a.ID || c.Closed == 0 {
		t.Errorf("closed %+v", c)
	}
	if r.silentDue(at+1100*second, epoch2026) {
		t.Error("missed again right after it came back")
	}
}

func TestMaintenanceRaisesNothing(t *testing.T) {
	r := newRig(t)
	at := feedCalm(r, "d1", epoch2026, 2000, 1)
	r.takeEvents()
	if res := r.entry(maintenanceEntry("d1", at+3600*second)); res != nil {
		t.Fatal(res)
	}
	if err, ok := r.entry(maintenanceEntry("d9", 1)).(error); !ok || !errors.Is(err, ErrNotFound) {
		t.Errorf("a device that is not known: %v", err)
	}
	r.block(message("d1", at+60*second, 95))
	if r.silentDue(at+3000*second, epoch2026) {
		t.Error("silence is due under maintenance")
	}
	for i := range 60 {
		r.block(message("d1", at+int64(i+2)*60*second, 20.3))
	}
	if ev := r.takeEvents(); len(ev) > 0 {
		t.Fatalf("events under maintenance: %+v", ev)
	}
	at = feedCalm(r, "d1", at+63*60*second, 1500, 1)
	r.takeEvents()
	r.block(message("d1", at+60*second, 500))
	if ev := r.takeEvents(); len(ev) != 1 || ev[0].Transition != anomaly.Opened {
		t.Errorf("behind the maintenance: %+v", ev)
	}
}

// What an operator calls normal closes, and comes back with less.
func TestNormalClosesAndLowersThePattern(t *testing.T) {
	first := map[bool]float64{}
	for _, told := range []bool{false, true} {
		r := newRig(t)
		at := feedCalm(r, "d1", epoch2026, 2000, 1)
		r.takeEvents()
		r.block(message("d1", at+60*second, 26))
		ev := r.takeEvents()
		if len(ev) != 1 || ev[0].Transition != anomaly.Opened {
			t.Fatalf("events %+v", ev)
		}
		if told {
			if res := r.entry(normalEntry(ev[0].ID)); res != nil {
				t.Fatal(res)
			}
			closed := r.takeEvents()
			if len(closed) != 1 || closed[0].Transition != anomaly.Closed || !closed[0].Anomaly.Normal || closed[0].ID != ev[0].ID {
				t.Fatalf("events %+v", closed)
			}
			if err, ok := r.entry(normalEntry("3-1-1")).(error); !ok || !errors.Is(err, ErrNotFound) {
				t.Errorf("an anomaly that is not listed: %v", err)
			}
		}
		at = feedCalm(r, "d1", at+60*second, 3000, 1)
		r.block(message("d1", at+60*second, 26))
		d, err := (&Shard{fsm: &fsm{machine: r.machine}}).Device("d1")
		if err != nil {
			t.Fatal(err)
		}
		first[told] = float64(d.Latest[0].Score)
	}
	if !(first[true] < first[false]) {
		t.Errorf("the same spike scores %v after the word of an operator, %v without", first[true], first[false])
	}
}

// The target is part of the state: a restored replica raises as often.
func TestTargetIsReplicated(t *testing.T) {
	r := newRig(t)
	if err, ok := r.entry(targetEntry(-1)).(error); !ok {
		t.Errorf("a target below zero: %v", err)
	}
	if res := r.entry(targetEntry(25)); res != nil {
		t.Fatal(res)
	}
	r.waves = []wave{{model: "m", last: 7, count: 3}}
	if res := r.entry(rangeEntry(Range{Sensor: "s", Min: 1, Max: 2}, true)); res != nil {
		t.Fatal(res)
	}
	r.outbox.add(Event{ID: "3-1-0", Shard: 3, Index: 1, Transition: anomaly.Opened, Anomaly: telemetry.Anomaly{ID: "3-1-0"}})
	f := &fsm{machine: newMachine(3, testDetector()), logs: raft.NewInmemStore(), restored: func(uint64) {}}
	for _, target := range []float64{25, 0} { // a replica that had one takes the one that it is sent
		if err, ok := r.entry(targetEntry(target)).(error); ok {
			t.Fatal(err)
		}
		if err := f.Restore(io.NopCloser(bytes.NewReader(r.snapshotBytes()))); err != nil {
			t.Fatal(err)
		}
		want := target
		if target == 0 {
			want = anomaly.DefaultParams().AlarmsPerDeviceMonth
		}
		if got := f.detector.Params().AlarmsPerDeviceMonth; got != want || f.digest() != r.digest() || len(f.waves) != 1 || f.ranges.set != 1 || len(f.outbox) != 1 {
			t.Errorf("restored target %v, want %v; %d waves", got, want, len(f.waves))
		}
	}
}

// Forty devices of a model that jump together are a handful of anomalies and a
// wave, which ends when no more of them follow; a device of another model is an
// anomaly of its own.
func TestDevicesOfAModelThatJumpTogetherAreOneAnomaly(t *testing.T) {
	r := newRig(t)
	const devices = 40
	say := func(at int64, x float64, only string) {
		var ms []telemetry.Message
		for i := range devices + 1 {
			m := message(fmt.Sprintf("d%d", i), at, x+float64((int(at/second)+31*i)*7919%13)/10)
			m.Attributes = []telemetry.Attribute{{Key: "model", Value: "m1"}}
			if i == devices {
				m.Attributes[0].Value = "m2"
			}
			if only == "" || only == m.Attributes[0].Value {
				ms = append(ms, m)
			}
		}
		r.block(ms...)
	}
	at := epoch2026
	for range 600 {
		at += 60 * second
		say(at, 20, "")
	}
	r.takeEvents()
	before := len(r.alerts.list)
	at += 60 * second
	say(at, 90, "")
	single, other, waves := 0, 0, 0
	for _, a := range r.alerts.list[before:] {
		switch {
		case a.Device == "model:m1":
			waves++
		case a.Device == "d40":
			other++
		default:
			single++
		}
	}
	if waves != 1 || other != 1 || single != waveLeast-1 {
		t.Fatalf("%d waves, %d of the other model, %d single anomalies, want 1, 1 and %d", waves, other, single, waveLeast-1)
	}
	folded := 0
	for _, e := range r.takeEvents() {
		if e.Anomaly.Wave != "" && e.Transition == anomaly.Closed && e.Model == "m1" {
			folded++
		}
	}
	open := true
	listed := (&Shard{fsm: &fsm{machine: r.machine}}).Anomalies(AnomalyFilter{Open: &open, To: 1 << 62, Limit: 100})
	if len(listed) != 2 || folded != waveLeast-1 {
		t.Errorf("%d anomalies became part of the wave, want %d; listed: %+v, want the wave and the other device", folded, waveLeast-1, listed)
	}
	if copied := restoreMachine(t, r.snapshotBytes()); copied.digest() != r.digest() || len(copied.waves) != 2 {
		t.Error("the restored state differs")
	}
	for range 31 {
		at += 60 * second
		say(at, 20, "m2")
	}
	for i := range r.alerts.list {
		if a := r.alerts.list[i]; a.Device == "model:m1" && a.Closed == 0 {
			t.Errorf("the wave is still open: %+v", a.Anomaly)
		}
	}
	if len(r.waves) > 1 {
		t.Errorf("%d waves are remembered", len(r.waves))
	}
}

// A value that a sensor cannot measure is an anomaly from its first reading on,
// warm-up or not, is over when the values are possible again, and the range is
// part of the state.
func TestOutOfPhysicalRangeIsAnAnomalyAtOnce(t *testing.T) {
	r := newRig(t)
	for _, bad := range []Range{{Sensor: "s0", Min: 5, Max: 5}, {Sensor: "", Min: 1, Max: 2}} {
		if err, ok := r.entry(rangeEntry(bad, true)).(error); !ok || !IsInvalid(err) {
			t.Errorf("%+v: %v, want it refused", bad, err)
		}
	}
	first := message("d1", epoch2026, 20, 20)
	sensor := first.Readings[1].Sensor
	if res := r.entry(rangeEntry(Range{Sensor: sensor, Min: -40, Max: 125}, true)); res != nil {
		t.Fatal(res)
	}
	r.block(first)
	r.block(message("d1", epoch2026+second, 20, 3276.7))
	ev := r.takeEvents()
	if len(ev) != 1 || ev[0].Transition != anomaly.Opened || ev[0].Anomaly.Cause != "out of physical range" {
		t.Fatalf("events %+v", ev)
	}
	if a := ev[0].Anomaly; a.Sensor != sensor || a.Value != 3276.7 || a.Low != -40 || a.High != 125 || a.Severity != 100 {
		t.Errorf("anomaly %+v", a)
	}
	if copied := restoreMachine(t, r.snapshotBytes()); copied.digest() != r.digest() || len(copied.ranges.named(copied.registry.names)) != 1 {
		t.Error("the restored state differs")
	}
	for i := range 30 {
		r.block(message("d1", epoch2026+int64(i+2)*second, 20, 21))
	}
	if ev := r.takeEvents(); len(ev) != 1 || ev[0].Transition != anomaly.Closed {
		t.Errorf("events %+v, want one that closes", ev)
	}
	if res := r.entry(rangeEntry(Range{Sensor: sensor}, false)); res != nil {
		t.Fatal(res)
	}
	r.block(message("d1", epoch2026+60*second, 20, 3276.7))
	if ev := r.takeEvents(); len(ev) != 0 {
		t.Errorf("without a range, in the warm-up: %+v", ev)
	}
}

// What nobody has confirmed stays for the next leader, as part of the state; what
// is confirmed goes, and there is a bound.
func TestUnconfirmedEventsAreKept(t *testing.T) {
	r := newRig(t)
	at := feedCalm(r, "d1", epoch2026, 2000, 1)
	r.entry(confirmEntry(r.index))
	if len(r.outbox) != 0 {
		t.Fatalf("%d events are left behind their confirmation", len(r.outbox))
	}
	r.takeEvents()
	r.block(message("d1", at+60*second, 95))
	first := r.index
	feedCalm(r, "d1", at+60*second, 60, 1)
	events := r.takeEvents()
	if len(events) < 2 || len(r.outbox) != len(events) || r.outbox[0].Index != first || r.outbox[0] != events[0] {
		t.Fatalf("outbox %+v, events %+v", r.outbox, events)
	}
	copied := restoreMachine(t, r.snapshotBytes())
	if copied.digest() != r.digest() || len(copied.outbox) != len(events) || copied.outbox[0] != events[0] {
		t.Errorf("restored outbox %+v, want %+v", copied.outbox, events)
	}
	r.entry(confirmEntry(first))
	if len(r.outbox) != len(events)-1 || r.outbox[0].Index <= first {
		t.Errorf("outbox %+v behind a confirmation up to %d", r.outbox, first)
	}
	for i := range uint64(2 * outboxMax) {
		r.outbox.add(Event{Index: 1 << 40, ID: fmt.Sprint(i)})
	}
	if n := len(r.outbox); n != outboxMax || r.outbox[n-1].ID != fmt.Sprint(2*outboxMax-1) {
		t.Errorf("%d events are kept, the last is %s", n, r.outbox[n-1].ID)
	}
}
