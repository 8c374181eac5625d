package importer

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// moreTimeNames are understood as times where nothing is stored.
var moreTimeNames = []string{"date_time", "date time", "epoch", "unixtime", "unix_time", "unix", "@timestamp", "time_utc", "timestamp_utc",
	"time (utc)", "timestamp_ms", "time_ms", "ts_ms", "epoch_ms", "created_at", "recorded_at", "measured_at", "event_time", "t"}

// labelNames are columns in which a person marked what is anomalous: to score
// them would be to read the answer.
var labelNames = []string{"label", "labels", "is_anomaly", "anomaly", "anomalies", "is_outlier", "outlier", "changepoint", "ground_truth", "attack", "fault", "is_fault"}

// guessPlan is makePlan for a file of which little is said.
func guessPlan(m Mapping, sample []byte) (*plan, error) {
	lines := sampleLines(sample)
	delimiter, err := delimiterOf(m.Delimiter, lines[0])
	if err != nil {
		return nil, err
	}
	first, err := split(nil, lines[0], delimiter)
	if err != nil {
		return makePlan(&m, sample, nil) // which says what is wrong
	}
	m.comma = delimiter == ';' // who separates fields so keeps the comma for numbers
	if !m.NoHeader && allData(first) {
		m.NoHeader = true
	} else if !m.NoHeader && len(first) > 1 && len(first[0]) == 0 {
		return unnamedIndex(m, first, sample)
	}
	if m.Time == "" {
		if m.Time, err = guessTime(&m, first, lines, delimiter); err != nil {
			return nil, err
		}
	}
	chosen := m.Sensors
	if len(chosen) == 0 && !m.NoHeader {
		if chosen, err = guessSensors(&m, first, sample); err != nil {
			return nil, err
		}
	}
	return makePlan(&m, sample, chosen)
}

// unnamedIndex is the plan for a file whose first column has no name, as tools
// write that keep rows by time.
func unnamedIndex(m Mapping, first [][]byte, sample []byte) (*plan, error) {
	m.NoHeader, m.Columns = true, []string{"index"}
	for _, f := range first[1:] {
		m.Columns = append(m.Columns, string(f))
	}
	lines := sampleLines(sample)
	delimiter, err := delimiterOf(m.Delimiter, lines[0])
	if err != nil {
		return nil, err
	}
	if m.Time == "" {
		p := &plan{columns: m.Columns}
		if i := p.find(append(slices.Clone(timeNames), moreTimeNames...)); i >= 0 {
			m.Time = m.Columns[i]
		} else if m.Time, err = guessTime(&m, first, lines[1:], delimiter); err != nil {
			return nil, err
		}
	}
	if len(m.Sensors) == 0 {
		if m.Sensors, err = guessSensors(&m, first, sample); err != nil {
			return nil, err
		}
		m.Sensors = slices.DeleteFunc(m.Sensors, func(name string) bool { return name == "index" })
	}
	p, err := makePlan(&m, sample, m.Sensors)
	if err != nil {
		return nil, err
	}
	p.headless = false
	return p, nil
}

// sampleLines are the first lines, without a byte order mark; the last one of a
// large file may be cut.
func sampleLines(sample []byte) [][]byte {
	sample = bytes.TrimPrefix(sample, []byte("\xef\xbb\xbf"))
	lines := bytes.SplitN(sample, []byte{'\n'}, 50)
	if len(lines) > 2 {
		lines = lines[:len(lines)-1]
	}
	for i := range lines {
		lines[i] = bytes.TrimRight(lines[i], "\r")
	}
	return lines
}

// allData reports that no cell of a first line can be a column's name.
func allData(first [][]byte) bool {
	var c clock
	numbers := 0
	for _, f := range first {
		kind, err := kindOf(string(f))
		if err == nil && kind == cellNumber {
			numbers++
			continue
		}
		if kind == cellEmpty {
			continue
		}
		if _, err := c.micros(string(f)); err != nil {
			return false
		}
	}
	return numbers > 0
}

// guessTime names the column of the time: by name, else the first one whose
// cells all read as dates, else the first whose numbers look like an epoch of
// this century and never fall; or date and time in a column each.
func guessTime(m *Mapping, first [][]byte, lines [][]byte, delimiter byte) (string, error) {
	p := &plan{time: -1}
	if err := p.name(m, first); err != nil {
		return "", err
	}
	if !m.NoHeader {
		lines = lines[1:]
	}
	if !m.NoHeader || len(m.Columns) > 0 {
		if t := apart(m, p, lines, delimiter); t != "" {
			return t, nil
		}
		if i := p.find(append(slices.Clone(timeNames), moreTimeNames...)); i >= 0 {
			return p.columns[i], nil
		}
	}
	for _, numeric := range []bool{false, true} {
		for i, name := range p.columns {
			if name != "" && timesOnly(lines, i, len(first), delimiter, numeric) {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("no column holds the time: name one with --time; the columns are %s", named(p.columns))
}

// apart is the template of a time whose date has a column of its own, "" where
// the time of a line reads without it.
func apart(m *Mapping, p *plan, lines [][]byte, delimiter byte) string {
	day, hour := p.find([]string{"date", "day"}), p.find([]string{"time", "time_of_day"})
	if day < 0 || hour < 0 {
		return ""
	}
	c := clock{layout: m.TimeLayout}
	for _, l := range lines {
		f, err := split(nil, l, delimiter)
		if err != nil || len(f) != len(p.columns) {
			continue
		}
		if _, err := c.micros(string(f[hour])); err == nil {
			return ""
		}
	}
	return "{" + p.columns[day] + "} {" + p.columns[hour] + "}"
}

const epochMin = 946_684_800 // the year 2000 in seconds

func timesOnly(lines [][]byte, column, columns int, delimiter byte, numeric bool) bool {
	var c clock
	last, seen := int64(0), 0
	for _, l := range lines {
		f, err := split(nil, l, delimiter)
		if err != nil || len(f) != columns {
			continue
		}
		cell := string(f[column])
		kind, err := kindOf(cell)
		if err != nil || (kind == cellNumber) != numeric {
			return false
		}
		us, err := c.micros(cell)
		if err != nil || numeric && (us < epochMin*1_000_000 || us < last) {
			return false
		}
		last = us
		seen++
	}
	return seen > 1
}

// guessSensors is what makePlan would take, without labels and without numbered
// rows that have no name.
func guessSensors(m *Mapping, first [][]byte, sample []byte) ([]string, error) {
	p := &plan{time: -1, comma: m.comma}
	var err error
	if p.delimiter, err = delimiterOf(m.Delimiter, sampleLines(sample)[0]); err != nil {
		return nil, err
	}
	if err := p.name(m, first); err != nil {
		return nil, err
	}
	if p.device, err = p.deviceParts(m); err != nil {
		return nil, err
	}
	if err := p.chooseTime(m); err != nil {
		return nil, err
	}
	_, rest, _ := bytes.Cut(sample, []byte{'\n'})
	var out []string
	for _, i := range p.numeric(rest) {
		name := p.columns[i]
		if name != "" && !strings.HasPrefix(name, "Unnamed:") && !slices.Contains(labelNames, strings.ToLower(name)) {
			out = append(out, name)
		}
	}
	return out, nil
}
