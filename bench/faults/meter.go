package faults

import (
	"slices"
	"sync"
	"time"
)

// meterSlot is the resolution of the time line of acknowledgements.
const meterSlot = 100 * time.Millisecond

// meter is the time line of acknowledgements of all clients.
type meter struct {
	start time.Time

	mu      sync.Mutex
	slots   []int // acknowledged messages per meterSlot
	samples []sample
}

// sample is one acknowledgement.
type sample struct{ at, latency time.Duration }

func newMeter() *meter { return &meter{start: time.Now()} }

// ack counts one acknowledged message.
func (m *meter) ack(latency time.Duration) {
	at := time.Since(m.start)
	m.mu.Lock()
	defer m.mu.Unlock()
	i := int(at / meterSlot)
	for len(m.slots) <= i {
		m.slots = append(m.slots, 0)
	}
	m.slots[i]++
	m.samples = append(m.samples, sample{at, latency})
}

// count is how many messages were acknowledged in [from, to).
func (m *meter) count(from, to time.Time) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, c := range m.slots {
		if at := m.start.Add(time.Duration(i) * meterSlot); !at.Before(from) && at.Before(to) {
			n += c
		}
	}
	return n
}

// rate is acknowledged messages per second in [from, to).
func (m *meter) rate(from, to time.Time) float64 {
	from, to = m.align(from), m.align(to)
	if !to.After(from) {
		return 0
	}
	return float64(m.count(from, to)) / to.Sub(from).Seconds()
}

func (m *meter) align(t time.Time) time.Time { return m.start.Add(t.Sub(m.start).Truncate(meterSlot)) }

// back is the time from t until the rate over window is at least want again;
// ok is false while it is not. A slot is looked at once it is over.
func (m *meter) back(t time.Time, want float64, window time.Duration) (d time.Duration, ok bool) {
	for from := m.align(t).Add(meterSlot); !from.Add(window + meterSlot).After(time.Now()); from = from.Add(meterSlot) {
		if m.rate(from, from.Add(window)) >= want {
			return max(0, from.Sub(t)), true
		}
	}
	return 0, false
}

// latency is a quantile of the latencies of acknowledgements in [from, to).
func (m *meter) latency(from, to time.Time, q float64) time.Duration {
	m.mu.Lock()
	var ds []time.Duration
	for _, s := range m.samples {
		if at := m.start.Add(s.at); !at.Before(from) && at.Before(to) {
			ds = append(ds, s.latency)
		}
	}
	m.mu.Unlock()
	if len(ds) == 0 {
		return 0
	}
	slices.Sort(ds)
	return ds[min(len(ds)-1, int(q*float64(len(ds))))]
}
