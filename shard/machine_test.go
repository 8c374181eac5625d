package shard

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

func TestRepeatedReadingIsDroppedAndNewValueAtSameTimeIsKept(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 20, 40))
	if res := r.block(message("d1", epoch2026, 20, 40)); !slices.Equal(res.Outcomes, []telemetry.Outcome{telemetry.Duplicate}) {
		t.Fatalf("an equal message gave %v, want duplicate", res.Outcomes)
	}
	if res := r.block(message("d1", epoch2026, 20, 41)); res.Outcomes != nil {
		t.Fatalf("a message with one new reading gave %v, want applied", res.Outcomes)
	}
	rows := r.rowsOf(t)
	if len(rows) != 3 {
		t.Fatalf("rows %q, want the two readings of the first message and humidity=41", rows)
	}
	want := Counts{Applied: 2, Duplicate: 1, Repeats: 1}
	if r.counts != want {
		t.Fatalf("counts %+v, want %+v", r.counts, want)
	}
}

func TestLedgerAddsUpOverEveryKindOfMessage(t *testing.T) {
	r := newRig(t)
	bad := telemetry.Message{Device: "d1", Received: epoch2026, Reason: "not JSON", Topic: "devices/d1/telemetry", Payload: []byte("{")}
	empty := message("d2", epoch2026)
	r.block(message("d1", epoch2026, 1), bad, empty, message("d1", epoch2026, 1))
	r.block(message("d1", epoch2026+second, 2))
	r.entry(flushEntry{From: 0, To: 1}.encode())
	c := r.counts
	if c.Applied != 3 || c.Duplicate != 1 || c.Quarantined != 1 || c.Flushed != 2 {
		t.Fatalf("counts %+v, want 3 applied, 1 duplicate, 1 quarantined, 2 flushed", c)
	}
}

func TestMarkedRetryWithoutTimestampIsRecognisedByItsKey(t *testing.T) {
	r := newRig(t)
	first := message("d1", epoch2026, 20)
	first.NoTime, first.Time = true, first.Received
	first.Dup = telemetry.DupKey{1, 2}
	again := first
	again.Retry, again.Received, again.Time = true, first.Received+second, first.Received+second
	r.block(first)
	if res := r.block(again); !slices.Equal(res.Outcomes, []telemetry.Outcome{telemetry.Duplicate}) {
		t.Fatalf("the retry gave %v, want duplicate", res.Outcomes)
	}
	same := again // a new publish that happens to say the same under the same packet id
	same.Retry = false
	if res := r.block(same); res.Outcomes != nil {
		t.Fatalf("an unmarked publish gave %v, want applied", res.Outcomes)
	}
}

func TestFirstTransmissionThatItsRetryOvertookIsADuplicate(t *testing.T) {
	r := newRig(t)
	first := message("d1", epoch2026+9*second, 20) // read by a node that stood still until then
	first.NoTime, first.Time = true, first.Received
	first.Dup = telemetry.DupKey{1, 2}
	retry := first
	retry.Retry, retry.Received, retry.Time = true, epoch2026+3*second, epoch2026+3*second
	sequence := map[string]uint64{}
	publish := func(origin string, m telemetry.Message) []telemetry.Outcome {
		sequence[origin]++
		return r.entry(encode(t, block.Header{Origin: origin, Epoch: 1, Seq: sequence[origin], Shard: 3}, m)).(Result).Outcomes
	}
	duplicate := []telemetry.Outcome{telemetry.Duplicate}
	if got := publish("n1.00000001", retry); got != nil {
		t.Fatalf("the retry gave %v, want applied", got)
	}
	r.machine = restoreMachine(t, r.snapshotBytes())
	if got := publish("n0.00000001", first); !slices.Equal(got, duplicate) {
		t.Fatalf("the first transmission behind its retry gave %v, want duplicate", got)
	}
	if got := publish("n1.00000001", retry); !slices.Equal(got, duplicate) {
		t.Fatalf("a second retry gave %v, want duplicate", got)
	}
	if got := publish("n0.00000001", first); got != nil {
		t.Fatalf("a new publish that says the same gave %v, want applied: a first transmission comes once", got)
	}
	again := retry
	again.Dup, again.Received, again.Time = telemetry.DupKey{1, 3}, again.Received+second, again.Time+second
	publish("n1.00000001", again)
	again.Retry, again.Received, again.Time = false, again.Received+second, again.Time+second
	if got := publish("n1.00000001", again); got != nil {
		t.Fatalf("a new publish through the retry's node gave %v, want applied", got)
	}
}

func TestKeyUsedAgainIsRememberedFromItsLatestUse(t *testing.T) {
	var d dupKeys
	key := func(i int) (k telemetry.DupKey) {
		k[0], k[1], k[2], k[3] = 1, byte(i), byte(i>>8), byte(i>>16)
		return k
	}
	d.add(key(0))
	for i := 1; i < dupKeysMax; i++ {
		d.add(key(i))
	}
	d.add(key(0)) // pushes out its first place
	d.add(key(dupKeysMax))
	if !d.has(key(0)) || d.has(key(1)) {
		t.Fatalf("has(newest use) = %v, has(oldest) = %v, want true and false", d.has(key(0)), d.has(key(1)))
	}
}

func TestRedeliveredGarbageIsQuarantinedOnce(t *testing.T) {
	r := newRig(t)
	bad := telemetry.Message{Device: "d1", Received: epoch2026, Reason: "not JSON", Payload: []byte("{"), Dup: telemetry.DupKey{9}}
	r.block(bad)
	bad.Retry = true
	res := r.block(bad)
	if !slices.Equal(res.Outcomes, []telemetry.Outcome{telemetry.Quarantined}) {
		t.Fatalf("the redelivery gave %v: its publisher must hear again that it was garbage", res.Outcomes)
	}
	if len(r.quarantine.items) != 1 || r.counts.Quarantined != 1 || r.counts.Duplicate != 1 {
		t.Fatalf("%d in quarantine, counts %+v, want one, counted once, and one duplicate", len(r.quarantine.items), r.counts)
	}
}

func TestQuarantineOfUnknownDeviceCreatesNoDevice(t *testing.T) {
	r := newRig(t)
	r.block(telemetry.Message{Device: "ghost", Received: epoch2026, Reason: "not JSON", Payload: []byte("{")})
	if r.registry.devices.n != 0 {
		t.Fatalf("%d devices, want none", r.registry.devices.n)
	}
}

func TestReadingFromTheFutureIsStoredButMovesNothing(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 20))
	m := message("d1", epoch2026+3600*second, 99)
	m.Received = epoch2026
	r.block(m)
	d := r.describe(0, true)
	if len(d.Latest) != 1 || d.Latest[0].Value != 20 {
		t.Fatalf("latest %+v, want 20", d.Latest)
	}
	rows := r.rowsOf(t)
	if want := fmt.Sprintf("d1 %d temperature=99 q%d s0", m.Time, telemetry.QualityFuture); len(rows) != 2 || rows[1] != want {
		t.Fatalf("rows %q, want the last to be %q", rows, want)
	}
}

func TestLatestValueGoesByDeviceTime(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026+second, 2))
	r.block(message("d1", epoch2026, 1))
	if d := r.describe(0, true); d.Latest[0].Value != 2 {
		t.Fatalf("latest %+v after a late reading, want 2", d.Latest)
	}
}

func TestDetectorsOfADeviceHearOfEverySensorAtOnce(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 1, 2), message("d2", epoch2026, 1))
	r.block(message("d1", epoch2026+second, 1, 2, 3))
	var want anomaly.State
	want.SetSensors(3)
	for n := r.registry.devices.at(0).firstSeries; n != none; n = r.registry.series.at(n).next {
		fresh := *r.registry.states.at(n)
		told := fresh
		told.SetSensors(3)
		if told != fresh {
			t.Fatalf("series %d of a device with 3 sensors was told another number", n)
		}
	}
	alone := *r.registry.states.at(r.registry.devices.at(1).firstSeries)
	told := alone
	told.SetSensors(1)
	if told != alone {
		t.Fatal("the other device's series was told another number than 1")
	}
}

func TestDeviceThatInventsSensorsIsBounded(t *testing.T) {
	r := newRig(t)
	for n := range 6 {
		m := telemetry.Message{Device: "d1", Time: epoch2026 + int64(n)*second, Received: epoch2026}
		for k := range telemetry.SensorsMax {
			m.Readings = append(m.Readings, telemetry.Reading{Sensor: fmt.Sprintf("s%d-%d", n, k), Value: telemetry.FloatValue(1)})
		}
		r.block(m)
	}
	if r.registry.series.n != seriesMax || len(r.registry.names) != seriesMax {
		t.Fatalf("%d series and %d names, want %d", r.registry.series.n, len(r.registry.names), seriesMax)
	}
	if r.pending.waiting() != 6*telemetry.SensorsMax {
		t.Fatalf("%d rows, want all %d", r.pending.waiting(), 6*telemetry.SensorsMax)
	}
}

func TestUnreadableBlockIsSkippedByEveryReplicaAlike(t *testing.T) {
	r := newRig(t)
	h := block.Header{Origin: "n0.00000001", Epoch: 1, Seq: 1, Shard: 3}
	data := encode(t, h, message("d1", epoch2026, 1))
	data[len(data)-1] ^= 1
	if res := r.entry(data).(Result); res.Status != StatusInvalid || res.Index != 1 {
		t.Fatalf("a block with a wrong checksum gave %+v, want invalid at 1", res)
	}
	if res := r.blockAs("n0.00000001", 1, 2, message("d1", epoch2026, 1)); res.Status != StatusApplied {
		t.Fatalf("the block behind it gave %+v, want applied", res)
	}
	for name, m := range map[string]telemetry.Message{
		"infinite": message("d1", epoch2026, math.Inf(1)), "NaN": message("d1", epoch2026, math.NaN()),
	} {
		r.seq["n9.00000001"]++
		if res := r.blockAs("n9.00000001", 1, r.seq["n9.00000001"], m); res.Status != StatusInvalid {
			t.Errorf("a block with a value that is %s gave %+v, want invalid", name, res)
		}
	}
	other := encode(t, block.Header{Origin: "n8.00000001", Epoch: 1, Seq: 1, Shard: 4}, message("d1", epoch2026, 1))
	if res := r.entry(other).(Result); res.Status != StatusInvalid {
		t.Errorf("a block of another shard gave %+v, want invalid", res)
	}
	tenant := encode(t, block.Header{Namespace: 7, Origin: "n7.00000001", Epoch: 1, Seq: 1, Shard: 3}, message("d1", epoch2026, 1))
	if res := r.entry(tenant).(Result); res.Status != StatusInvalid {
		t.Errorf("a block of another namespace gave %+v, want invalid", res)
	}
}

func TestEntriesOfKindsToComeAreAnsweredAndChangeNothing(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 1))
	for _, k := range []EntryKind{EntryMessage, EntryDelete, 99} {
		var want *KindError
		if err, _ := r.entry(appendControl(nil, k)).(error); !errors.As(err, &want) || want.Kind != k {
			t.Errorf("entry of kind %d was answered with %v, want a KindError", k, err)
		}
	}
	if r.counts.Applied != 1 || r.pending.waiting() != 1 {
		t.Fatalf("state changed: %+v", r.counts)
	}
}

func TestFlushIsRefusedUnlessItBeginsAtTheWatermarkAndEndsBehindItself(t *testing.T) {
	r := newRig(t)
	r.block(message("d1", epoch2026, 1))
	r.block(message("d1", epoch2026+1, 2))
	for name, e := range map[string]flushEntry{"wrong start": {From: 1, To: 2}, "empty": {From: 0, To: 0}, "future": {From: 0, To: 9}} {
		if err, _ := r.entry(e.encode()).(error); !errors.Is(err, errFlushStale) {
			t.Errorf("%s: got %v, want errFlushStale", name, err)
		}
	}
	if err, _ := r.entry(flushedEntry(telemetry.LaneLive, 99, telemetry.Gap{})).(error); !errors.Is(err, errFlushStale) {
		t.Errorf("flushed beyond the log: got %v, want errFlushStale", err)
	}
	if got := r.entry(flushEntry{From: 0, To: 1}.encode()); got != nil {
		t.Fatalf("flush of (0, 1]: %v", got)
	}
	if got := r.entry(flushEntry{From: 1, To: 2}.encode()); got != nil {
		t.Fatalf("flush of (1, 2]: %v", got)
	}
	if err, _ := r.entry(flushEntry{From: 1, To: 2}.encode()).(error); !errors.Is(err, errFlushStale) {
		t.Errorf("the second leader's decision: got %v, want errFlushStale", err)
	}
}

func TestFlushTakesDeviceChangesAlongOnce(t *testing.T) {
	r := newRig(t)
	m := message("d1", epoch2026, 1)
	m.Attributes = []telemetry.Attribute{{Key: "firmware", Value: "1.2.3"}}
	r.block(m)
	r.block(message("d2", epoch2026, 1))
	r.entry(flushEntry{From: 0, To: 1}.encode())
	first := r.pending.decided[0].updates
	if len(first) != 2 || first[0].Device != "d1" || !slices.Equal(first[0].Attributes, m.Attributes) {
		t.Fatalf("first flush has updates %+v, want d1 and d2 in their present state", first)
	}
	r.entry(flushEntry{From: 1, To: 2}.encode())
	if second := r.pending.decided[1].updates; len(second) != 1 || second[0].Device != "d2" {
		t.Fatalf("second flush has updates %+v, want d2, which changed behind the first", second)
	}
	if len(r.touched) != 0 {
		t.Fatalf("%d devices still touched", len(r.touched))
	}
}

func TestAnomalyOpensIsListedAndClosesUnderOneID(t *testing.T) {
	r := newRig(t)
	var events []Event
	at := epoch2026
	feed := func(n int, v func(i int) float64) {
		for i := range n {
			at += 60 * second
			r.block(message("d1", at, v(i)))
			events = append(events, r.takeEvents()...)
		}
	}
	calm := func(i int) float64 { return 20 + float64(i*7919%13)/10 }
	feed(3000, calm)
	before := len(events)
	feed(1, func(int) float64 { return 95 })
	feed(400, calm)
	events = events[before:]
	if len(events) < 2 || events[0].Transition != anomaly.Opened || events[len(events)-1].Transition != anomaly.Closed {
		t.Fatalf("events %+v, want an anomaly that opens and closes", events)
	}
	if events[0].ID != events[0].Anomaly.ID || events[len(events)-1].Anomaly.ID != events[0].ID {
		t.Fatalf("ids %q and %q, want the opening's", events[0].ID, events[len(events)-1].Anomaly.ID)
	}
	a := r.alerts.list[len(r.alerts.list)-1]
	if a.Closed == 0 || a.Value != 95 || a.Sensor != "temperature" {
		t.Fatalf("anomaly %+v, want closed, value 95 of temperature", a.Anomaly)
	}
}

func TestQuarantineIsBoundedAndLetsGoByTheClockOfTheLog(t *testing.T) {
	r := newRig(t)
	bad := func(at int64) telemetry.Message {
		return telemetry.Message{Device: "d1", Received: at, Reason: "not JSON", Payload: make([]byte, 60<<10)}
	}
	for i := range 400 {
		r.block(bad(epoch2026 + int64(i)*second))
	}
	if r.quarantine.bytes > quarantineBytesMax || len(r.quarantine.items) == 400 {
		t.Fatalf("%d bytes in %d messages, want at most %d bytes", r.quarantine.bytes, len(r.quarantine.items), quarantineBytesMax)
	}
	first := r.quarantine.items[0].ID
	r.entry(quarantineRemoveEntry([]uint64{first, first + 2, 999_999}))
	if _, ok := r.quarantine.find(first + 2); ok || r.quarantine.items[0].ID != first+1 {
		t.Fatalf("removed messages are still there")
	}
	r.entry(timeEntry(epoch2026+quarantineAge+1000*second, 0))
	if len(r.quarantine.items) != 0 || r.quarantine.bytes != 0 {
		t.Fatalf("%d messages, %d bytes after their age, want none", len(r.quarantine.items), r.quarantine.bytes)
	}
}

// TestSnapshotRestoresAfterTheLargestValues guards against values that a scanner
// lets pass and a detector's state does not survive.
func TestSnapshotRestoresAfterTheLargestValues(t *testing.T) {
	r := newRig(t)
	values := []float64{math.MaxFloat64, -math.MaxFloat64, 0, math.SmallestNonzeroFloat64, 1e300, -1e-300, math.MaxFloat64}
	for i := range 500 {
		r.block(message("d1", epoch2026+int64(i)*60*second, values[i%len(values)], values[i*i%len(values)]))
		if i%50 == 0 {
			r.machine = restoreMachine(t, r.snapshotBytes())
		}
	}
}
