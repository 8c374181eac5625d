package wal

import "time"

// scrubBytes is read at once; between two reads the segment may be recycled.
const scrubBytes = 1 << 20

// scrubber reads sealed segments back at a low rate, so that rot is found while
// other replicas can still repair it, and not by the next restart.
type scrubber struct{ l *Log }

func newScrubber(l *Log) *scrubber { return &scrubber{l: l} }

// run is the scrubber goroutine.
func (c *scrubber) run() {
	rate := c.l.cfg.ScrubBytesPerSecond
	if rate < 0 {
		return
	}
	pause := time.Duration(float64(scrubBytes) / float64(rate) * float64(time.Second))
	tick := time.NewTicker(max(pause, time.Millisecond))
	defer tick.Stop()
	var rest []*segment
	var began time.Time
	for {
		select {
		case <-c.l.stop:
			return
		case <-tick.C:
		}
		if len(rest) == 0 {
			if time.Since(began) >= c.l.cfg.ScrubEvery {
				rest = c.l.janitor.sealed()
			}
			if len(rest) > 0 {
				began = time.Now()
			}
			continue
		}
		if !c.segment(rest[0], tick.C) {
			return
		}
		rest = rest[1:]
	}
}

// segment verifies one segment; false means the log is closing.
func (c *scrubber) segment(s *segment, tick <-chan time.Time) bool {
	t := tail{off: headerBytes}
	for !c.chunk(s, &t) {
		select {
		case <-c.l.stop:
			return false
		case <-tick:
		}
	}
	return true
}

// chunk verifies the next part of s and reports whether it was the last.
func (c *scrubber) chunk(s *segment, t *tail) (done bool) {
	done, err := c.read(s, t)
	if err != nil {
		c.l.damaged(s, err)
	}
	return done
}

func (c *scrubber) read(s *segment, t *tail) (done bool, err error) {
	s.use.RLock()
	defer s.use.RUnlock()
	if s.f == nil || s.rotten.Load() { // recycled, or known
		return true, nil
	}
	from := t.off
	err = s.scanOn(t, scrubBytes, func(off int64, _ []byte, r *record) error {
		if r.typ != typeRelocated {
			return nil
		}
		if err := checkOrigin(r, s.logID); err != nil {
			return s.corrupt(off, "entry changed while it was relocated", err)
		}
		return nil
	})
	c.l.metrics.scrubbed.Add(float64(t.off - from))
	if err == nil && !t.sealed && (t.why != nil || t.off == from) {
		err = s.corrupt(t.off, "records end before the seal", t.why)
	}
	return err != nil || t.sealed, err
}
