package bench

import (
	"fmt"
	"time"
)

// History is the ledger of one client for one device: messages 0 to Sent-1 were
// sent at least once, those in Acked were acknowledged.
type History struct {
	Device string
	NoTime bool // messages have a value of their own instead of a time
	Sent   uint64
	Acked  []uint64 // ascending
}

// Stored is one reading as the API returns it.
type Stored struct {
	Time   time.Time
	Sensor string
	Value  float64
	Score  float32
}

// Verdict is what a judge found, counted in messages.
type Verdict struct {
	Acked  int
	Stored int // messages of which something is stored
	Lost   int // acknowledged and not stored, or not whole (C1)
	Unsent int // stored and never sent, or with other values (C2)
	Twice  int // stored more than once (C3)
	Errors []error
}

// errorsMax bounds what a judge says about one device; the counts are complete.
const errorsMax = 20

// Add adds the counts of another device.
func (v *Verdict) Add(o Verdict) {
	v.Acked += o.Acked
	v.Stored += o.Stored
	v.Lost += o.Lost
	v.Unsent += o.Unsent
	v.Twice += o.Twice
	v.Errors = append(v.Errors, o.Errors...)
}

// Judge compares what is stored of the device with the ledger: acknowledged is a
// subset of stored (C1), nothing is stored that was not sent, with the values it
// was sent with (C2), and no reading is stored twice (C3).
func (h *History) Judge(stored []Stored) (v Verdict) {
	report := func(format string, args ...any) {
		if len(v.Errors) < errorsMax {
			v.Errors = append(v.Errors, fmt.Errorf(h.Device+": "+format, args...))
		}
	}
	seen := map[uint64]map[string]bool{}
	for _, r := range stored {
		seq, ok := h.Sequence(r)
		if !ok || seq >= h.Sent {
			v.Unsent++
			report("stored but never sent: %v %s = %v", r.Time, r.Sensor, r.Value)
			continue
		}
		if want, ok := h.expected(seq)[r.Sensor]; !ok || want != r.Value {
			v.Unsent++
			report("message %d: %s is stored as %v, was sent as %v", seq, r.Sensor, r.Value, want)
		}
		if seen[seq] == nil {
			seen[seq] = map[string]bool{}
		}
		if seen[seq][r.Sensor] {
			v.Twice++
			report("message %d: %s is stored twice", seq, r.Sensor)
		}
		seen[seq][r.Sensor] = true
	}
	for _, seq := range h.Acked {
		if want := len(h.expected(seq)); len(seen[seq]) != want {
			v.Lost++
			report("message %d was acknowledged, %d of its %d readings are stored", seq, len(seen[seq]), want)
		}
	}
	v.Acked, v.Stored = len(h.Acked), len(seen)
	return v
}

// Sequence tells which message a stored reading is of.
func (h *History) Sequence(r Stored) (uint64, bool) {
	if h.NoTime {
		return uint64(r.Value), r.Value >= 0
	}
	return uint64(r.Time.Sub(Epoch) / time.Millisecond), !r.Time.Before(Epoch)
}

func (h *History) expected(seq uint64) map[string]float64 {
	if h.NoTime {
		return map[string]float64{sensorNoTime: float64(seq)}
	}
	return expected(seq)
}
