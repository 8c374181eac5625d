package postgres

import (
	"cmp"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/telemetry"
)

// originalReadingsMax bounds the messages that each of their letters repeats: of
// a longer one, only the letter of the first refused reading holds it. A message may
// have 1,024 readings, and all of them may be refused.
const originalReadingsMax = 64

// originals finds the message that a row came in, among the rows of its batch.
type originals struct {
	batch *telemetry.Batch
	order []int32      // rows by device, time and receipt, then as in the batch
	told  map[int]bool // beginnings in order of long messages that a letter holds
}

func newOriginals(b *telemetry.Batch) *originals {
	o := &originals{batch: b, order: make([]int32, len(b.Rows)), told: map[int]bool{}}
	for i := range o.order {
		o.order[i] = int32(i)
	}
	slices.SortFunc(o.order, func(i, j int32) int {
		return cmp.Or(compareMessage(&b.Rows[i], &b.Rows[j]), cmp.Compare(i, j))
	})
	return o
}

func compareMessage(a, b *telemetry.Row) int {
	return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.Time, b.Time), cmp.Compare(a.Received, b.Received))
}

// of is the message of a row in the form in which it can be published again, with
// all of its readings that are in the batch; nil when another letter has it.
func (o *originals) of(i int) any {
	b := o.batch
	r := &b.Rows[i]
	lo, _ := slices.BinarySearchFunc(o.order, r, func(j int32, r *telemetry.Row) int { return compareMessage(&b.Rows[j], r) })
	hi := lo
	for hi < len(o.order) && compareMessage(&b.Rows[o.order[hi]], r) == 0 {
		hi++
	}
	if hi-lo > originalReadingsMax {
		if o.told[lo] {
			return nil
		}
		o.told[lo] = true
	}
	sensors := make(map[string]any, hi-lo)
	for _, j := range o.order[lo:hi] {
		row := &b.Rows[j]
		sensors[clean(b.Sensors[row.Sensor])] = measured(row)
	}
	m := map[string]any{"device_id": clean(b.Devices[r.Device]), "sensors": sensors}
	if r.Quality&telemetry.QualityReceiptTime == 0 {
		m["timestamp"] = timeText(r.Time)
	}
	at, ok := slices.BinarySearchFunc(b.Updates, b.Devices[r.Device], func(u telemetry.DeviceUpdate, d string) int { return strings.Compare(u.Device, d) })
	if ok && len(b.Updates[at].Attributes) > 0 {
		attributes := map[string]string{}
		for _, a := range b.Updates[at].Attributes {
			attributes[clean(a.Key)] = clean(a.Value)
		}
		m["metadata"] = attributes
	}
	return m
}

// measured is a value as the device wrote it.
func measured(r *telemetry.Row) any {
	if r.Quality&telemetry.QualityBool != 0 {
		return r.Value != 0
	}
	return number(r.Value)
}
