package importer

import (
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/sluice-iot/sluice/telemetry"
)

// Formats of the input.
const (
	FormatAuto   = "auto" // by the name, else by the first byte
	FormatCSV    = "csv"
	FormatNDJSON = "ndjson"
)

// NoTime as Mapping.Time says that lines have no time: that of receipt counts.
const NoTime = "none"

// Config says what to send, whereto and how.
type Config struct {
	Path    string    // of the input; "-" is Stdin
	Stdin   io.Reader // used for Path "-"
	Format  string    // FormatAuto by default
	Mapping Mapping   // of CSV columns

	Brokers []string // host:port of nodes
	Cluster string   // its id when known: a state file of another cluster is refused

	// State is the file with the position, "" for none: then an interrupted
	// import begins again at the first line.
	State string
	// Restart ignores what State says.
	Restart bool

	// InFlight is how many publishes may wait for their answer. Default 512.
	InFlight int
	// Connections is how many MQTT connections share the work. Default two per
	// broker. A resumed import keeps the first one's.
	Connections int
	// Batch is how many lines become one publish, an array. Default 1: a device's
	// own way. More saves the nodes' work per publish, and lets the nodes say
	// less precisely which line was refused. For CSV with times only.
	Batch int

	// StartTimeout is how long the first connection may take. Default 10 s.
	StartTimeout time.Duration
	// DrainTimeout is how long Run waits for answers when ctx has ended. Default
	// 10 s.
	DrainTimeout time.Duration

	// Bad is told every line that is not stored as telemetry, in no strict order,
	// from Run's goroutine; may be nil.
	Bad func(line int64, reason string)
}

// Mapping says what the columns of a CSV file mean. The names are those of the
// header line, or of Columns.
type Mapping struct {
	// Device is the column with the device id, or a template with columns in
	// braces, "engine-{unit}". Default: the column device_id, device or id.
	Device string
	// DeviceID is the device of the whole file, instead of Device.
	DeviceID string

	// Time is the column with the time, NoTime for none, or a template with columns
	// in braces, "{date} {time}". Default: the column timestamp, time, ts, unix_ts,
	// datetime or date.
	Time string
	// TimeUnit of numbers: auto (by magnitude: below 1e11 seconds, below 1e14
	// milliseconds, below 1e17 microseconds, else nanoseconds), s, ms, us or ns.
	// Text is RFC 3339, without a zone UTC.
	TimeUnit string
	// TimeLayout reads text of another form (Go's reference time).
	TimeLayout string
	// TimeBase and TimeStep make a time of a counter: base + number * step.
	TimeBase time.Time
	TimeStep time.Duration

	// Sensors are the columns with values. Default: all others that hold numbers.
	Sensors []string

	NoHeader bool     // the first line is data already
	Columns  []string // names when NoHeader; default c1, c2, ...

	// Delimiter is a character, "tab", "space" (runs of blanks and tabs) or
	// "auto" (default: what the first line looks like).
	Delimiter string

	comma bool // numbers are written with a decimal comma
}

const (
	inFlightUsual     = 512
	inFlightMax       = 10_000 // far more than the nodes need to be busy
	connectionsMax    = 64
	batchMax          = 500 // half of unsavedMax, so that the next batch fills while one is under way
	startTimeoutUsual = 10 * time.Second
	drainTimeoutUsual = 10 * time.Second

	// unsavedMax messages per connection and stallMax keep repeats within a
	// device's window of 1,024 messages and 120 s, see doc.go.
	unsavedMax = 1000
	stallMax   = 60 * time.Second

	// lineBytesMax is a node's limit of one payload.
	lineBytesMax = 512 << 10
	// batchBytesMax closes a batch before it could reach that limit.
	batchBytesMax = 128 << 10
)

// Validate returns every problem of the configuration.
func (c *Config) Validate() error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Path == "" {
		problem("no input: name a file, or - for standard input")
	}
	if c.Path == "-" && c.Stdin == nil {
		problem("standard input is not given")
	}
	switch c.Format {
	case "", FormatAuto, FormatCSV, FormatNDJSON:
	default:
		problem("format %q is not known: use auto, csv or ndjson", c.Format)
	}
	if len(c.Brokers) == 0 {
		problem("brokers is empty: give at least one host:port")
	}
	if c.InFlight < 0 || c.InFlight > inFlightMax {
		problem("in-flight is %d: use 1 to %d", c.InFlight, inFlightMax)
	}
	if c.Connections < 0 || c.Connections > connectionsMax {
		problem("connections is %d: use 1 to %d", c.Connections, connectionsMax)
	}
	if c.Batch < 0 || c.Batch > batchMax {
		problem("batch is %d: use 1 to %d", c.Batch, batchMax)
	}
	if c.Batch > 1 && c.Mapping.Time == NoTime {
		problem("batch needs times in the file: without them a repeat after an interruption is not recognised")
	}
	if err := c.Mapping.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Validate returns every problem that does not depend on the file.
func (m *Mapping) Validate() error {
	var errs []error
	problem := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if m.Device != "" && m.DeviceID != "" {
		problem("device and device-id are both given: use one of them")
	}
	if m.DeviceID != "" && !telemetry.ValidDeviceID(m.DeviceID) {
		problem("device-id %q: %w", m.DeviceID, telemetry.ErrDeviceID)
	}
	switch m.TimeUnit {
	case "", "auto", "s", "ms", "us", "ns":
	default:
		problem("time-unit %q is not known: use auto, s, ms, us or ns", m.TimeUnit)
	}
	if m.TimeBase.IsZero() != (m.TimeStep == 0) {
		problem("time-base and time-step belong together: give both")
	}
	if m.TimeStep < 0 {
		problem("time-step is %v: use a positive duration", m.TimeStep)
	}
	if m.TimeStep > 0 && (m.TimeLayout != "" || m.TimeUnit != "" && m.TimeUnit != "auto") {
		problem("time-step makes times of a counter: leave time-unit and time-layout out")
	}
	if len(m.Columns) > 0 && !m.NoHeader {
		problem("columns names the columns of a file without header: add no-header")
	}
	if _, err := delimiterOf(m.Delimiter, nil); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *Config) defaults() {
	if c.Format == "" {
		c.Format = FormatAuto
	}
	if c.InFlight == 0 {
		c.InFlight = inFlightUsual
	}
	if c.Connections == 0 {
		c.Connections = min(2*len(c.Brokers), connectionsMax)
	}
	if c.Batch == 0 {
		c.Batch = 1
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = startTimeoutUsual
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = drainTimeoutUsual
	}
}

// validSensor applies the rules of the message format to a column's name.
func validSensor(name string) bool {
	if name == "" || len(name) > telemetry.NameBytesMax || !utf8.ValidString(name) {
		return false
	}
	for _, r := range name {
		if r < 0x20 || r == 0x7f {
			return false
		}
	}
	return true
}
