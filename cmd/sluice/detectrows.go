package main

import (
	"bufio"
	"fmt"
	"math"
	"strconv"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
)

// rowLine is a row in JSON. Value, expected, low and high are of the sensor
// with the largest share.
type rowLine struct {
	Line   int64     `json:"line"`
	Time   *api.Time `json:"time"`
	Device string    `json:"device,omitempty"` // where the file holds several
	// Severity is 0 to 100 where the row is news, at most 45 where it goes on; 50 is one false alarm
	// per device and month.
	Severity    float64  `json:"severity"`
	Grade       string   `json:"grade"`
	Alert       bool     `json:"alert"`           // an alert opens with this row
	Open        bool     `json:"open"`            // an alert is open
	Event       string   `json:"event,omitempty"` // opened, updated, closed
	Sensor      string   `json:"sensor,omitempty"`
	Value       *decimal `json:"value"`
	Expected    *decimal `json:"expected"`
	Low         *decimal `json:"low"`
	High        *decimal `json:"high"`
	Cause       string   `json:"cause"`
	Score       float64  `json:"score"` // 0 to 1, news or not; 0.5 is exactly as rare as the target
	Probability float64  `json:"probability"`
	Warmup      bool     `json:"warmup"`

	Sensors map[string]*sensorLine `json:"sensors,omitempty"` // where a row has several
	Error   string                 `json:"error,omitempty"`
}

type sensorLine struct {
	Value    decimal `json:"value"`
	Expected decimal `json:"expected"`
	Low      decimal `json:"low"`
	High     decimal `json:"high"`
	Severity float64 `json:"severity"`
	Score    float64 `json:"score"`
	Cause    string  `json:"cause"`
	Share    float64 `json:"share"` // of the row's surprise
}

// decimal is a float with as many digits as it needs.
type decimal float64

// MarshalJSON writes null for what JSON cannot say.
func (n decimal) MarshalJSON() ([]byte, error) {
	f := float64(n)
	if f-f != 0 {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, f, 'g', 10, 64), nil
}

func decimalOf(f float64) *decimal { n := decimal(f); return &n }

func round(f, digits float64) float64 {
	p := math.Pow(10, digits)
	return math.Round(f*p) / p
}

func (f *detection) printRows(out *bufio.Writer) error {
	for i := range f.rows {
		if err := printLine(out, f.rowLine(&f.rows[i])); err != nil {
			return err
		}
	}
	return nil
}

func (f *detection) rowLine(r *detectRow) *rowLine {
	v := &r.joint
	l := &rowLine{Line: r.line, Error: r.bad, Grade: anomaly.Grade(v.Severity), Probability: 1}
	if r.lost {
		return l
	}
	at := api.Time(r.time)
	l.Time = &at
	if len(f.devices) > 1 {
		l.Device = f.devices[r.device]
	}
	l.Severity, l.Score, l.Probability = round(v.Severity, 4), float64(v.Score), v.Probability()
	l.Alert, l.Open, l.Warmup = v.Alert == anomaly.Opened, v.Open, v.Warmup
	if v.Alert != anomaly.None {
		l.Event = v.Alert.String()
	}
	if v.Severity > 0 || v.Alert == anomaly.Opened || v.Alert == anomaly.Updated {
		l.Cause = v.Cause.String()
	}
	if r.top >= 0 {
		low, high := f.band(r)
		l.Sensor, l.Value = f.sensors[r.top], decimalOf(r.values[r.top])
		l.Expected, l.Low, l.High = decimalOf(r.verdicts[r.top].Expected), decimalOf(low), decimalOf(high)
	}
	if len(f.sensors) > 1 {
		l.Sensors = f.sensorLines(r)
	}
	return l
}

func (f *detection) sensorLines(r *detectRow) map[string]*sensorLine {
	out := make(map[string]*sensorLine, len(r.values))
	for k, x := range r.values {
		if x != x {
			continue
		}
		t := &r.verdicts[k]
		s := &sensorLine{Value: decimal(x), Expected: decimal(t.Expected), Low: decimal(t.Low), High: decimal(t.High), Severity: round(t.Severity, 4), Score: float64(t.Score)}
		if t.Severity > 0 {
			s.Cause = t.Cause.String()
		}
		if r.shares != nil {
			s.Share = round(r.shares[k], 3)
		}
		out[f.sensors[k]] = s
	}
	return out
}

// printScores is the short form: a line per reading.
func (f *detection) printScores(out *bufio.Writer) error {
	fmt.Fprintln(out, "time,device,sensor,value,score")
	for i := range f.rows {
		r := &f.rows[i]
		for k, x := range r.values {
			if x != x {
				continue
			}
			_, err := fmt.Fprintf(out, "%s,%s,%s,%s,%s\n", api.Time(r.time), f.devices[r.device], f.sensors[k],
				strconv.FormatFloat(x, 'g', -1, 64), strconv.FormatFloat(float64(r.verdicts[k].Score), 'g', 6, 32))
			if err != nil {
				return fmt.Errorf("write output: %w", err)
			}
		}
	}
	return nil
}
