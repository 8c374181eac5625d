package anomaly

// Cause names the aspect of a reading that was the most surprising. The numbers
// are part of the serialised state; new causes are appended.
type Cause uint8

// The causes.
const (
	CauseNone     Cause = 0
	CauseSpike    Cause = 1 // far from what the readings just before let expect
	CauseLevel    Cause = 2 // several readings in a row on one side of the usual level
	CauseVariance Cause = 3 // noise became much stronger or much weaker
	CauseSeason   Cause = 4 // unusual for this time of day, though not far from its neighbours
	CauseFlat     Cause = 5 // the same value repeated for unusually long
	CauseRange    Cause = 6 // outside of everything seen for weeks
	CauseReset    Cause = 7 // a counter fell back to its start
	CauseDrift    Cause = 8 // the mean of a hundred readings left the usual level by little

	CauseMissing   Cause = 9  // no readings where the reporting rate says there should be
	CauseLimit     Cause = 10 // outside of what the sensor can measure, see Row.Exceed
	CauseJoint     Cause = 11 // several sensors of a device, none of them alone
	CauseDecoupled Cause = 12 // a sensor no longer moves with the others of its device
	causeLast            = CauseDecoupled
)

var causeNames = [...]string{"", "spike", "level shift", "variance", "season", "flat line", "out of range", "counter reset", "drift",
	"missing data", "out of physical range", "several sensors", "decoupled"}

// String is the cause as users read it, "" for CauseNone.
func (c Cause) String() string {
	if int(c) < len(causeNames) {
		return causeNames[c]
	}
	return "unknown"
}

// CauseOf is the cause with a name, CauseNone for any other text.
func CauseOf(name string) Cause {
	for c, n := range causeNames {
		if n == name {
			return Cause(c)
		}
	}
	return CauseNone
}

// excuseMax bounds what feedback does: a pattern counts a tenth at least.
const excuseMax = 18

// excuseStep is what one word of an operator takes: a surprise of this pattern
// then counts 2/(2+2), 2/(2+4), ... of itself.
const excuseStep = 2

// Excuse lowers the pattern behind a cause for good: an operator has said that
// it is normal for this series.
func (s *State) Excuse(c Cause) {
	switch c {
	case CauseSpike:
		excuse(s.excused[:], featureSpike, featureRange, featureDev)
	case CauseLevel, CauseSeason:
		excuse(s.excused[:], featureLevel, featureDev, featureDrift)
	case CauseDrift:
		excuse(s.excused[:], featureDrift)
	case CauseVariance:
		excuse(s.excused[:], featureSpread, featureSpike)
	case CauseFlat:
		excuse(s.excused[:], featureRun)
	case CauseRange:
		excuse(s.excused[:], featureRange, featureSpike)
	case CauseReset:
		excuse(s.excused[:], featureSpike, featureDev, featureRange)
	}
}

// Excuse is State.Excuse for what only the device as a whole shows.
func (s *DeviceState) Excuse(c Cause) {
	switch c {
	case CauseJoint:
		excuse(s.excused[:], jointSum, jointEnergy)
	case CauseDecoupled:
		excuse(s.excused[:], jointBroken)
	default: // a sensor's, which takes part in the sum
		excuse(s.excused[:], jointSum)
	}
}

func excuse(level []uint8, features ...int) {
	for _, j := range features {
		level[j] = min(level[j]+excuseStep, excuseMax)
	}
}

// Transition is what a reading did to the alert of its series.
type Transition uint8

// The transitions. Between Opened and Closed there may be any number of Updated.
const (
	None    Transition = iota
	Opened             // an alert begins with this reading
	Updated            // the open alert got worse: this reading is its worst so far
	Closed             // the series has been quiet for long enough
)

func (t Transition) String() string {
	switch t {
	case Opened:
		return "opened"
	case Updated:
		return "updated"
	case Closed:
		return "closed"
	default:
		return "none"
	}
}
