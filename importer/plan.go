package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// plan is a Mapping applied to the columns of one file.
type plan struct {
	columns   []string
	delimiter byte
	device    []part
	time      int    // column, -1 for none or for several
	moment    []part // the time in several columns
	comma     bool   // numbers are written with a decimal comma
	clock     clock
	sensors   []sensorColumn
	ignored   []string // columns that hold text
	headless  bool     // the first line is data
}

// part of a device id: a column, or fixed text.
type part struct {
	column int // -1 for text
	text   string
}

type sensorColumn struct {
	column int
	name   string
	key    []byte // "name": in JSON
}

// Names that are understood without being told.
var (
	deviceNames = []string{"device_id", "device", "id"}
	timeNames   = []string{"timestamp", "time", "ts", "unix_ts", "datetime", "date"}
)

// makePlan reads the beginning of the file. chosen are the sensors of an earlier
// run; nil lets the sample decide.
func makePlan(m *Mapping, sample []byte, chosen []string) (*plan, error) {
	first, rest, _ := bytes.Cut(sample, []byte{'\n'})
	first = bytes.TrimPrefix(bytes.TrimRight(first, "\r"), []byte("\xef\xbb\xbf"))
	p := &plan{time: -1, headless: m.NoHeader, comma: m.comma}
	var err error
	if p.delimiter, err = delimiterOf(m.Delimiter, first); err != nil {
		return nil, err
	}
	fields, err := split(nil, first, p.delimiter)
	if err != nil {
		return nil, fmt.Errorf("line 1: %w", err)
	}
	if err := p.name(m, fields); err != nil {
		return nil, err
	}
	if p.device, err = p.deviceParts(m); err != nil {
		return nil, err
	}
	if err := p.chooseTime(m); err != nil {
		return nil, err
	}
	if chosen == nil {
		chosen = m.Sensors
	}
	if m.NoHeader {
		rest = sample
	}
	return p, p.chooseSensors(chosen, rest)
}

// name fills in the columns' names.
func (p *plan) name(m *Mapping, first [][]byte) error {
	switch {
	case !m.NoHeader:
		for _, f := range first {
			p.columns = append(p.columns, string(f))
		}
	case len(m.Columns) > 0:
		if len(m.Columns) != len(first) {
			return fmt.Errorf("line 1 has %d fields, columns names %d: give every field a name", len(first), len(m.Columns))
		}
		p.columns = slices.Clone(m.Columns)
	default:
		for i := range first {
			p.columns = append(p.columns, fmt.Sprintf("c%d", i+1))
		}
	}
	for i, c := range p.columns {
		if at := slices.Index(p.columns, c); at != i && c != "" {
			return fmt.Errorf("columns %d and %d are both named %q: name them apart with --no-header and --columns", at+1, i+1, c)
		}
	}
	return nil
}

// column finds a column by name.
func (p *plan) column(what, name string) (int, error) {
	if i := slices.Index(p.columns, name); i >= 0 {
		return i, nil
	}
	return 0, fmt.Errorf("%s: no column %q, the columns are %s", what, name, named(p.columns))
}

// named lists columns for a person, who may have given a file that has none.
func named(columns []string) string {
	var b strings.Builder
	for i, c := range columns {
		if b.Len() > namedBytes {
			fmt.Fprintf(&b, " and %d more", len(columns)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		if len(c) > telemetry.NameBytesMax {
			c = c[:telemetry.NameBytesMax]
		}
		if q := strconv.Quote(c); len(q) != len(c)+2 {
			c = q
		}
		b.WriteString(c)
	}
	return b.String()
}

// namedBytes bounds a line on a terminal.
const namedBytes = 400

// find is the first column with one of these names, -1 for none.
func (p *plan) find(names []string) int {
	for _, n := range names {
		if i := slices.IndexFunc(p.columns, func(c string) bool { return strings.EqualFold(c, n) }); i >= 0 {
			return i
		}
	}
	return -1
}

func (p *plan) deviceParts(m *Mapping) ([]part, error) {
	switch {
	case m.DeviceID != "":
		return []part{{column: -1, text: m.DeviceID}}, nil
	case m.Device == "":
		i := p.find(deviceNames)
		if i < 0 {
			return nil, fmt.Errorf("no column says which device a line belongs to: give --device (a column or a template like pump-{column}) or --device-id; the columns are %s", named(p.columns))
		}
		return []part{{column: i}}, nil
	case !strings.ContainsAny(m.Device, "{}"):
		i, err := p.column("device", m.Device)
		return []part{{column: i}}, err
	}
	return p.template("device", m.Device)
}

// template reads text with columns in braces.
func (p *plan) template(what, text string) (parts []part, err error) {
	for rest := text; rest != ""; {
		fixed, after, open := strings.Cut(rest, "{")
		if strings.Contains(fixed, "}") {
			return nil, fmt.Errorf("%s template %q has a } without {: write {COLUMN}", what, text)
		}
		if fixed != "" {
			parts = append(parts, part{column: -1, text: fixed})
		}
		if !open {
			break
		}
		name, tail, closed := strings.Cut(after, "}")
		if !closed {
			return nil, fmt.Errorf("%s template %q has a { without }: write {COLUMN}", what, text)
		}
		i, err := p.column(what, name)
		if err != nil {
			return nil, err
		}
		parts, rest = append(parts, part{column: i}), tail
	}
	return parts, nil
}

func (p *plan) chooseTime(m *Mapping) error {
	p.clock = clock{unit: m.TimeUnit, layout: m.TimeLayout, base: m.TimeBase, step: m.TimeStep}
	if m.Time == NoTime {
		if m.TimeStep > 0 || m.TimeLayout != "" {
			return errors.New("time is none: leave time-step and time-layout out, or name the column")
		}
		return nil
	}
	if m.Time == "" {
		if p.time = p.find(timeNames); p.time < 0 {
			return fmt.Errorf("no column holds the time: name one with --time, or give --time none for the time of receipt; the columns are %s", named(p.columns))
		}
		return nil
	}
	var err error
	if _, err = p.column("time", m.Time); err != nil && strings.ContainsAny(m.Time, "{}") {
		p.moment, err = p.template("time", m.Time)
		return err
	}
	p.time, err = p.column("time", m.Time)
	return err
}

// micros is the time of a line, 0 where the file has none.
func (p *plan) micros(f [][]byte) (int64, error) {
	if p.moment != nil {
		us, err := p.clock.micros(join(p.moment, f))
		if err != nil {
			return 0, fmt.Errorf("time of several columns: %w", err)
		}
		return us, nil
	}
	if p.time < 0 {
		return 0, nil
	}
	us, err := p.clock.micros(string(f[p.time]))
	if err != nil {
		return 0, fmt.Errorf("column %s: %w", p.columns[p.time], err)
	}
	return us, nil
}

// timed reports whether lines have a time.
func (p *plan) timed() bool { return p.time >= 0 || p.moment != nil }

// cell is what a field says.
func (p *plan) cell(field []byte) string {
	if p.comma && bytes.Count(field, []byte{','}) == 1 && bytes.IndexByte(field, '.') < 0 {
		return string(bytes.Replace(field, []byte{','}, []byte{'.'}, 1))
	}
	return string(field)
}

// chooseSensors takes the named columns, or those whose cells in the sample are
// numbers or empty.
func (p *plan) chooseSensors(chosen []string, sample []byte) error {
	var columns []int
	if len(chosen) > 0 {
		for _, name := range chosen {
			i, err := p.column("sensors", name)
			if err != nil {
				return err
			}
			columns = append(columns, i)
		}
	} else {
		columns = p.numeric(sample)
	}
	if len(columns) == 0 {
		return fmt.Errorf("no column holds numbers: name them with --sensors (--value of detect); the columns are %s", named(p.columns))
	}
	if len(columns) > telemetry.SensorsMax {
		return fmt.Errorf("%d columns are sensors, at most %d can be: choose with --sensors (--value of detect)", len(columns), telemetry.SensorsMax)
	}
	for _, i := range columns {
		name := p.columns[i]
		if !validSensor(name) {
			return fmt.Errorf("column %d: %q is no name of a sensor (1 to %d bytes of UTF-8 without control characters): name it with --no-header and --columns, or choose others with --sensors (--value of detect)", i+1, name, telemetry.NameBytesMax)
		}
		key, err := json.Marshal(name)
		if err != nil {
			return fmt.Errorf("column %d: %w", i+1, err)
		}
		p.sensors = append(p.sensors, sensorColumn{column: i, name: name, key: append(key, ':')})
	}
	return nil
}

// numeric are the columns that are neither device nor time and hold at least as
// many numbers as texts in the sample: a bad cell must not cost a column. The
// last line of the sample may be cut and does not count, unless it is the only
// one.
func (p *plan) numeric(sample []byte) []int {
	balance := make([]int, len(p.columns))
	if at := bytes.LastIndexByte(sample, '\n'); at >= 0 {
		sample = sample[:at]
	}
	var fields [][]byte
	for l := range bytes.Lines(sample) {
		var err error
		fields, err = split(fields[:0], bytes.TrimRight(l, "\r\n"), p.delimiter)
		if err != nil || len(fields) != len(p.columns) {
			continue // will be reported when it is sent
		}
		for i, f := range fields {
			switch k, _ := kindOf(p.cell(f)); k {
			case cellText:
				balance[i]--
			case cellNumber, cellBool:
				balance[i]++
			}
		}
	}
	var out []int
	for i := range p.columns {
		of := func(d part) bool { return d.column == i }
		used := i == p.time || slices.ContainsFunc(p.device, of) || slices.ContainsFunc(p.moment, of)
		switch {
		case used:
		case balance[i] < 0:
			p.ignored = append(p.ignored, p.columns[i])
		default:
			out = append(out, i)
		}
	}
	return out
}

// sensorNames are for the state file.
func (p *plan) sensorNames() []string {
	var out []string
	for _, s := range p.sensors {
		out = append(out, s.name)
	}
	return out
}

// errNothing says that a line holds no value at all.
var errNothing = errors.New("no value in any sensor column")

// message appends the JSON of one line to dst. fields is scratch.
func (p *plan) message(dst []byte, text []byte, fields *[][]byte) (out []byte, device string, readings int, err error) {
	*fields, err = split((*fields)[:0], text, p.delimiter)
	f := *fields
	if err != nil {
		return dst, "", 0, err
	}
	if len(f) != len(p.columns) {
		return dst, "", 0, fmt.Errorf("%d fields, want %d", len(f), len(p.columns))
	}
	if device, err = p.deviceOf(f); err != nil {
		return dst, "", 0, err
	}
	out = dst
	out = append(out, `{"device_id":"`...)
	out = append(out, device...)
	out = append(out, '"')
	if p.timed() {
		us, err := p.micros(f)
		if err != nil {
			return dst, "", 0, err
		}
		out = append(out, `,"timestamp":"`...)
		out = time.UnixMicro(us).UTC().AppendFormat(out, "2006-01-02T15:04:05.999999Z")
		out = append(out, '"')
	}
	out = append(out, `,"sensors":{`...)
	if out, readings, err = p.appendSensors(out, f); err != nil {
		return dst, "", 0, err
	}
	if readings == 0 {
		return dst, "", 0, errNothing
	}
	return append(out, "}}"...), device, readings, nil
}

func (p *plan) deviceOf(f [][]byte) (string, error) {
	id := join(p.device, f)
	if !telemetry.ValidDeviceID(id) {
		return "", fmt.Errorf("device %q: %w", id, telemetry.ErrDeviceID)
	}
	return id, nil
}

// join puts the parts together.
func join(parts []part, f [][]byte) string {
	if len(parts) == 1 {
		return parts[0].in(f)
	}
	var b strings.Builder
	for _, d := range parts {
		b.WriteString(d.in(f))
	}
	return b.String()
}

func (d part) in(f [][]byte) string {
	if d.column < 0 {
		return d.text
	}
	return string(f[d.column])
}

func (p *plan) appendSensors(out []byte, f [][]byte) ([]byte, int, error) {
	readings := 0
	for i := range p.sensors {
		s := &p.sensors[i]
		cell := string(f[s.column])
		kind, err := kindOf(cell)
		if err != nil {
			return out, 0, fmt.Errorf("column %s: %q %w", s.name, cell, err)
		}
		if kind == cellEmpty {
			continue
		}
		if kind == cellText {
			return out, 0, fmt.Errorf("column %s: %q is not a number", s.name, cell)
		}
		if readings > 0 {
			out = append(out, ',')
		}
		readings++
		out = append(out, s.key...)
		if kind == cellBool {
			out = append(out, strings.ToLower(cell)...)
		} else {
			out = appendNumber(out, cell)
		}
	}
	return out, readings, nil
}
