package anomaly

const (
	habitGain   = 1.0 // nats by which an alert raises the bar for the next
	habitDevice = 0.3 // the same for a device whose sensors report together: its own tail is calibrated already
	habitMax    = 8.0
	habitMin    = -0.7 // a series without alerts may become twice as sensitive, not more: silence is no fault
	peakHours   = 24   // the peak of surprises decays by e in this time, bounded by:
	peakShort   = 100
	peakLong    = 5000
	quietNats   = 4.0 // an open alert is not kept open by what is more frequent than one reading in 50: it would never close
	worseBy     = 1.5 // nats by which an open alert must get worse to be updated, and a surprise beat the decaying peak to be news: less is how readings of one surprise differ
)

// alertStep moves an alert by one reading: u nats against the threshold aim.
// A new alert must beat aim, what the series' own past alerts added to it (an
// adaptive conformal controller: Gibbs and Candes 2021; each alert costs
// gain nats, which the allowed rate earns back, so that the long-run rate
// cannot exceed the target on any series) and the decaying peak of surprises.
func (d *Detector) alertStep(s *alarm, u, aim, peak, gain float64, cause Cause) Transition {
	s.habit = float32(larger(float64(s.habit)-mul(gain, float64(s.earn)), habitMin))
	if !s.open {
		if u < aim+float64(s.habit) || u <= peak+worseBy {
			return None
		}
		s.open, s.causeOf, s.quiet, s.worst = true, cause, 0, float32(u)
		s.habit = float32(smaller(float64(s.habit)+gain, habitMax))
		return Opened
	}
	if u >= smaller(larger(mul(0.5, aim), quietNats), aim) {
		s.quiet = 0
		if u >= float64(s.worst)+worseBy {
			s.worst = float32(u)
			s.causeOf = cause
			return Updated
		}
		return None
	}
	s.quiet++
	if int(s.quiet) < d.p.CloseAfter {
		return None
	}
	s.open, s.quiet, s.worst = false, 0, 0
	return Closed
}

// What a reading that is no news shows of its score as severity, in per cent: it
// ranks below news, but not with what is quiet.
const (
	toldShare = 20
	openShare = 45 // while an alert is open
)

// What lasts is not what each reading says of itself: a fault has readings without any
// surprise, and those between two surprising ones belong to it. The severity of what is no news
// is therefore at least what the mean score of the last readings gives, which
// rises fast at first, never reaches lastMost, and never is the same twice: a list
// sorted by severity has no long tie of readings at zero.
const (
	lastShare = 0.2   // of the newest score in that mean: about five readings
	lastMost  = 30.0  // below an alert's 50: what lasts is no news
	lastHalf  = 0.2   // mean score that gives half of it, nearly
	lastLeast = 1e-12 // smaller means are none: a float32 without end would be slow
)

// recent moves the mean score of the last readings by one.
func (s *alarm) recent(score float64) float64 {
	m := toward(float64(s.lasting), score, lastShare)
	if m < lastLeast {
		m = 0
	}
	s.lasting = float32(m)
	return m
}

// told is the severity of what is no news; lasting is the mean score of the last
// readings.
func told(open bool, score, lasting float64) float64 {
	share := float64(toldShare)
	if open {
		share = openShare
	}
	return larger(mul(share, score), mul(lastMost*(1+lastHalf), lasting)/(lasting+lastHalf))
}

// Grade is a severity in a word: "normal" below 25, "notice" below 50, "warning"
// below 75, "critical" from there on. An alert opens at a warning; critical is as
// rare as the square of what the target allows.
func Grade(severity float64) string {
	switch {
	case severity < 25:
		return "normal"
	case severity < 50:
		return "notice"
	case severity < 75:
		return "warning"
	}
	return "critical"
}
