package parquet

import (
	"fmt"

	"github.com/sluice-iot/sluice/telemetry"
)

// check refuses what is not canonical and returns the segment that b becomes,
// without Bytes and Digest.
func check(b *telemetry.Batch, namespace uint32) (Segment, error) {
	bad := func(format string, args ...any) (Segment, error) {
		return Segment{}, &BatchError{Shard: b.Shard, From: b.From, To: b.To, Reason: fmt.Sprintf(format, args...)}
	}
	if b.Namespace != namespace {
		return bad("namespace is %d, this store holds %d", b.Namespace, namespace)
	}
	if b.From >= b.To {
		return bad("the range is empty")
	}
	if i := unsorted(b.Devices); i >= 0 {
		return bad("device %d (%q) is not above its predecessor", i, b.Devices[i])
	}
	if i := unsorted(b.Sensors); i >= 0 {
		return bad("sensor %d (%q) is not above its predecessor", i, b.Sensors[i])
	}
	for i := 1; i < len(b.Updates); i++ {
		if b.Updates[i-1].Device >= b.Updates[i].Device {
			return bad("update %d (%q) is not above its predecessor", i, b.Updates[i].Device)
		}
	}
	for i := 1; i < len(b.Anomalies); i++ {
		if b.Anomalies[i-1].ID >= b.Anomalies[i].ID {
			return bad("anomaly %d (%q) is not above its predecessor", i, b.Anomalies[i].ID)
		}
	}
	seg := Segment{Shard: b.Shard, From: b.From, To: b.To, Rows: uint64(len(b.Rows)), Messages: b.Messages, Parts: 1}
	if reason := checkRows(b, &seg); reason != "" {
		return bad("%s", reason)
	}
	return seg, nil
}

func unsorted(list []string) int {
	for i := range list {
		if list[i] == "" || (i > 0 && list[i-1] >= list[i]) {
			return i
		}
	}
	return -1
}

// checkRows finds the time bounds and what is wrong with the rows.
func checkRows(b *telemetry.Batch, seg *Segment) string {
	if len(b.Rows) == 0 {
		if len(b.Devices)+len(b.Sensors) > 0 {
			return "dictionaries without rows"
		}
		return ""
	}
	seg.MinTime, seg.MaxTime, seg.MaxReceived = b.Rows[0].Time, b.Rows[0].Time, b.Rows[0].Received
	used := make([]bool, len(b.Sensors))
	sensors, devices := 0, uint32(0)
	last := &b.Rows[0]
	if last.Device != 0 {
		return "row 0: the first device of the dictionary is not used"
	}
	for i := range b.Rows {
		r := &b.Rows[i]
		if int(r.Device) >= len(b.Devices) || int(r.Sensor) >= len(b.Sensors) {
			return fmt.Sprintf("row %d: device %d or sensor %d is not in the dictionary", i, r.Device, r.Sensor)
		}
		if r.Device != last.Device {
			if r.Device != last.Device+1 {
				return fmt.Sprintf("row %d: device %d after device %d", i, r.Device, last.Device)
			}
		} else if r.Sensor < last.Sensor || (r.Sensor == last.Sensor && r.Time < last.Time) {
			return fmt.Sprintf("row %d is not sorted by device, sensor and time", i)
		}
		if !used[r.Sensor] {
			used[r.Sensor] = true
			sensors++
		}
		seg.MinTime, seg.MaxTime, seg.MaxReceived = min(seg.MinTime, r.Time), max(seg.MaxTime, r.Time), max(seg.MaxReceived, r.Received)
		devices, last = r.Device, r
	}
	if int(devices)+1 != len(b.Devices) || sensors != len(b.Sensors) {
		return fmt.Sprintf("dictionaries of %d devices and %d sensors, used are %d and %d", len(b.Devices), len(b.Sensors), devices+1, sensors)
	}
	return ""
}
