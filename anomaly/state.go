package anomaly

const (
	features = 7  // see the feature* constants
	hours    = 24 // bins of the time-of-day profile
	weekdays = 7
)

// State is what the detector knows of one series. The zero value is a fresh
// series. It holds no pointer and is a plain value: copying it forks the series.
// Field order is the order of FORMAT.md.
type State struct {
	// time
	last    int64   // device time of the newest reading, us
	cadence float64 // mean time between readings, us
	n       uint32  // readings learned from, saturating
	sensors uint16  // sensors of the device, 0 counts as 1
	rising  uint16  // steps in a row that did not fall, saturating: a counter
	run     uint32  // steps in a row with the same value

	// model: x = level + season + AR(1) deviation + bias + noise
	level, prev, dprev float64 // slow level; newest value; its deviation from level and season
	cov, vr            float64 // lag-1 covariance and variance of the deviation
	bias               float64 // mean of the innovation (trend per reading)
	noise              float64 // mean |innovation|
	plain, seasonal    float64 // mean |x - level| without and with the season
	hi, lo             float64 // range seen, shrinking over weeks
	binSum, daySum     float64 // sums of x - level over the present hour and day
	binN, dayN         uint32
	day                int32   // present day since the epoch
	side               int16   // readings in a row far above (>0) or below (<0) the level, saturating
	bin                uint8   // present hour of day
	noiseHigh          float32 // noise where the forecast is above the level, and below it:
	noiseLow           float32 // a busy hour is noisier than a quiet one
	profile            [hours]float32
	week               [weekdays]float32
	seen               [hours]uint8 // visits of the hour, saturating
	weekSeen           [weekdays]uint8
	memory             float32 // of the level, readings; renewed with bar
	short, spread      float32 // short means of the deviation and of |innovation|, in scales
	long               float32 // long mean of the deviation
	grain              float32 // smallest step between two readings, forgotten over weeks; 0 before the first
	moves              uint8   // steps seen, saturating

	// first stage of tails: per feature a quantile and the mean excess over it
	q, ex [features]float32

	// second stage: tail of the combined surprise, over separate episodes
	tail tail

	alarm

	// the device's view: how this series moves with the others of its device
	load  float32 // its part in the common motion, in scales
	resid float32 // mean |deviation| that the common motion does not explain, in scales

	excused [features]uint8 // how often an operator called a feature normal, see Excuse
}

// alarm is the alert of a series or of a device.
type alarm struct {
	target  float32 // nats that the target demands of a reading
	earn    float32 // e^-target: what a reading without alert lowers the habit by
	bar     float32 // what the innovation alone must reach, in mean excesses; 0 = compute anew
	habit   float32 // nats the threshold is raised by alerts of the past
	fade    float32 // share of peak that a reading takes away; renewed with bar
	peak    float32 // decaying peak of the surprise, nats
	worst   float32 // worst surprise of the open alert, nats
	lasting float32 // mean score of the last readings
	quiet   uint16  // quiet readings in a row while an alert is open
	open    bool
	causeOf Cause // of the open alert
}

// SetSensors tells the series how many sensors its device has, so that together
// they keep to the device's target. 1 until told. The number takes effect with
// the next reading; calling it again with the same number costs nothing.
func (s *State) SetSensors(n int) {
	n = min(max(n, 1), 65535)
	if s.sensors != uint16(n) {
		s.sensors = uint16(n)
		s.bar = 0
	}
}

// Readings is how many readings the series has learned from.
func (s *State) Readings() int { return int(s.n) }

// Cadence is the mean time between readings in microseconds, 0 when unknown.
func (s *State) Cadence() int64 { return int64(s.cadence) }

// Open reports whether an alert of the series is open, and of which cause.
func (s *State) Open() (Cause, bool) { return s.causeOf, s.open }
