package telemetry

// Quality is a bit set stored with every row; 0 is a plain good reading.
type Quality uint8

// Quality bits; the numbers are part of segments and of the SQL schema.
const (
	QualityReceiptTime Quality = 1 << 0 // the device sent no time, Time is when it was received
	QualityFuture      Quality = 1 << 1 // Time was more than ten minutes ahead of receipt
	QualityWarmup      Quality = 1 << 2 // the score comes from a detector that is still learning
	QualityBool        Quality = 1 << 3 // the device wrote true or false, not a number
)

// Row is one reading on its way to the store. Device and Sensor index the
// dictionaries of the Batch that holds it.
type Row struct {
	Time     int64 // microseconds since the epoch
	Received int64 // microseconds since the epoch
	Value    float64
	Device   uint32
	Sensor   uint32
	Score    float32 // 0..1, calibrated tail probability scale; 0 while warming up
	Quality  Quality
}

// Lane is one of a shard's two ways into a shared database. Which one a reading
// takes is decided when it is applied; each has a watermark of its own, so that
// a fleet's backlog does not hold up what is measured now.
type Lane uint8

// The lanes; the numbers are part of snapshots, log entries and the SQL schema.
const (
	LaneLive Lane = 0
	LaneLate Lane = 1 // measured long before it was received
	Lanes         = 2 // of readings

	// LaneBacklog is no reading's: it brings what the live lane has left out, see
	// Gap.
	LaneBacklog Lane = 2
)

func (l Lane) String() string {
	switch l {
	case LaneLate:
		return "late"
	case LaneBacklog:
		return "backlog"
	}
	return "live"
}

// Watermarks say which rows of a shard's log are stored: of each lane those up to
// To, but for the gap in the live one.
type Watermarks struct {
	To  [Lanes]uint64
	Gap Gap // ends before To[LaneLive]; zero: none
}

// Gap is a range of the log, From exclusive, whose rows of the live lane are not
// stored although some behind it are. It shrinks from its beginning.
type Gap struct{ From, To uint64 }

// Open reports whether there is a gap.
func (g Gap) Open() bool { return g.From < g.To }

// Holds reports whether the rows of an entry are missing.
func (g Gap) Holds(index uint64) bool { return g.From < index && index <= g.To }

// Has reports whether the rows of an entry are stored.
func (w Watermarks) Has(l Lane, index uint64) bool {
	return index <= w.To[l] && (l != LaneLive || !w.Gap.Holds(index))
}

// Low is up to where the live lane is stored without a gap.
func (w Watermarks) Low() uint64 {
	if w.Gap.Open() {
		return w.Gap.From
	}
	return w.To[LaneLive]
}

// Union is what is stored according to one or the other; false when that would
// be more than one gap.
func (w Watermarks) Union(o Watermarks) (Watermarks, bool) {
	if o.To[LaneLive] < w.To[LaneLive] {
		w, o = o, w // w ends first
	}
	out := o
	for l := range out.To {
		out.To[l] = max(w.To[l], o.To[l])
	}
	// What both lack, up to where w ends, and what o lacks behind that.
	both := Gap{max(w.Gap.From, o.Gap.From), min(w.Gap.To, o.Gap.To)}
	behind := Gap{max(w.To[LaneLive], o.Gap.From), o.Gap.To}
	switch {
	case both.Open() && behind.Open() && both.To < behind.From:
		return w, false
	case both.Open() && behind.Open():
		out.Gap = Gap{both.From, behind.To}
	case both.Open():
		out.Gap = both
	case behind.Open():
		out.Gap = behind
	default:
		out.Gap = Gap{}
	}
	return out, true
}

// Batch is the compacted content of one contiguous range of one shard's log:
// repeats removed, rows sorted by (device, sensor, time, log order), those of the
// late lane by day of their time first, both dictionaries sorted and without
// unused entries, so that the same range gives the same Batch on every replica.
type Batch struct {
	Namespace uint32
	Shard     ShardID
	Lane      Lane   // with a shared database; the embedded store takes both at once as LaneLive
	From, To  uint64 // raft indexes, From exclusive, To inclusive
	Term      uint64 // term of the leader that flushes; 0 in the embedded store
	// GapEnd, in the live lane, is where the rows begin, behind From: those between
	// are left to the backlog lane. In that one it is where the gap ends.
	GapEnd    uint64
	Lost      bool   // nothing but a record that these rows are gone, see dead letters
	Messages  uint64 // applied messages in the range (the ledger's unit)
	Devices   []string
	Sensors   []string
	Rows      []Row
	Updates   []DeviceUpdate // last state of each device touched in the range, sorted by device
	Anomalies []Anomaly      // opened, changed or closed in the range, sorted by id, last state of each

	// Sources tells which messages these rows came in, in the order of the log: it
	// reads the range again, so it is for a store that has refused a few. What it
	// gives lives until give returns. nil: nobody knows any more.
	Sources func(rows []int, give func(row int, s *Source) error) error
}

// Source is the message that a row came in.
type Source struct {
	ID      string  // "<shard>-<log index>-<position in that entry>", the same on every replica
	Message Message // as it was received; its Dup is the identity that its publisher gave
}

// DeviceUpdate is a device's descriptive state at the end of a batch.
type DeviceUpdate struct {
	Device     string
	FirstSeen  int64
	LastSeen   int64       // latest receive time
	Attributes []Attribute // sorted by key
}

// Anomaly is an alert about one sensor of one device: it opens, may get worse,
// and closes. Its ID is the same on every replica and after a replay.
type Anomaly struct {
	ID       string // "<shard>-<log index of the opening>-<position in that entry>"
	Device   string
	Sensor   string  // the one with the largest share; "" for missing data
	Opened   int64   // device time of the reading that opened it
	Closed   int64   // 0 while open
	Severity float64 // 0..100, the worst so far
	Cause    string  // "spike", "level", ...
	Value    float64 // the reading at the worst moment
	Expected float64
	Low      float64 // band around Expected
	High     float64
	// Shares is each sensor's share of the surprise, "temperature 0.62, pressure
	// 0.38", "" for one sensor; Normal that an operator said so.
	Shares string
	Normal bool
	// Wave is the id of the anomaly of a whole model that this one was the beginning
	// of, "" for none; it is not listed by itself then.
	Wave string
}
