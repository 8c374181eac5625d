package parquet

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/sluice-iot/sluice/telemetry"
)

// extra is what a batch holds besides rows; it is kept as JSON inside the file.
type extra struct {
	Updates   []extraUpdate  `json:"updates"`
	Anomalies []extraAnomaly `json:"anomalies"`
}

type extraUpdate struct {
	Device     text      `json:"device_id"`
	FirstSeen  int64     `json:"first_seen"`
	LastSeen   int64     `json:"last_seen"`
	Attributes [][2]text `json:"attributes"`
}

type extraAnomaly struct {
	ID       text   `json:"id"`
	Device   text   `json:"device_id"`
	Sensor   text   `json:"sensor"`
	Opened   int64  `json:"opened"`
	Closed   int64  `json:"closed"`
	Severity number `json:"severity"`
	Cause    text   `json:"cause"`
	Value    number `json:"value"`
	Expected number `json:"expected"`
	Low      number `json:"low"`
	High     number `json:"high"`
	Shares   text   `json:"shares,omitempty"`
	Normal   bool   `json:"normal,omitempty"`
	Wave     text   `json:"wave,omitempty"`
}

// text is a string that survives JSON although it is not UTF-8: {"base64":"..."}.
type text string

func (t text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(map[string]string{"base64": base64.StdEncoding.EncodeToString([]byte(t))})
}

func (t *text) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, (*string)(t))
	}
	var wrapped struct{ Base64 []byte }
	if err := json.Unmarshal(b, &wrapped); err != nil {
		return err
	}
	*t = text(wrapped.Base64)
	return nil
}

// number is a float64 that survives JSON although it is not finite.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	switch f := float64(n); {
	case f != f:
		return []byte(`"NaN"`), nil
	case math.IsInf(f, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(f, -1):
		return []byte(`"-Infinity"`), nil
	default:
		return json.Marshal(f)
	}
}

func (n *number) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case `"NaN"`:
		*n = number(math.NaN())
	case `"Infinity"`:
		*n = number(math.Inf(1))
	case `"-Infinity"`:
		*n = number(math.Inf(-1))
	default:
		return json.Unmarshal(b, (*float64)(n))
	}
	return nil
}

// marshalExtra returns nil when the batch has neither updates nor anomalies.
func marshalExtra(b *telemetry.Batch) ([]byte, error) {
	if len(b.Updates) == 0 && len(b.Anomalies) == 0 {
		return nil, nil
	}
	var e extra
	for _, u := range b.Updates {
		attributes := make([][2]text, len(u.Attributes))
		for i, a := range u.Attributes {
			attributes[i] = [2]text{text(a.Key), text(a.Value)}
		}
		e.Updates = append(e.Updates, extraUpdate{Device: text(u.Device), FirstSeen: u.FirstSeen, LastSeen: u.LastSeen, Attributes: attributes})
	}
	for _, a := range b.Anomalies {
		e.Anomalies = append(e.Anomalies, extraAnomaly{
			ID: text(a.ID), Device: text(a.Device), Sensor: text(a.Sensor), Opened: a.Opened, Closed: a.Closed,
			Severity: number(a.Severity), Cause: text(a.Cause), Value: number(a.Value),
			Expected: number(a.Expected), Low: number(a.Low), High: number(a.High),
			Shares: text(a.Shares), Normal: a.Normal, Wave: text(a.Wave),
		})
	}
	raw, err := json.Marshal(&e)
	if err != nil {
		return nil, fmt.Errorf("encode device updates and anomalies: %w", err)
	}
	return raw, nil
}

func unmarshalExtra(raw []byte, b *telemetry.Batch) error {
	if len(raw) == 0 {
		return nil
	}
	var e extra
	if err := json.Unmarshal(raw, &e); err != nil {
		return fmt.Errorf("decode device updates and anomalies: %w", err)
	}
	for _, u := range e.Updates {
		d := telemetry.DeviceUpdate{Device: string(u.Device), FirstSeen: u.FirstSeen, LastSeen: u.LastSeen}
		for _, a := range u.Attributes {
			d.Attributes = append(d.Attributes, telemetry.Attribute{Key: string(a[0]), Value: string(a[1])})
		}
		b.Updates = append(b.Updates, d)
	}
	for _, a := range e.Anomalies {
		b.Anomalies = append(b.Anomalies, telemetry.Anomaly{
			ID: string(a.ID), Device: string(a.Device), Sensor: string(a.Sensor), Opened: a.Opened, Closed: a.Closed,
			Severity: float64(a.Severity), Cause: string(a.Cause), Value: float64(a.Value),
			Expected: float64(a.Expected), Low: float64(a.Low), High: float64(a.High),
			Shares: string(a.Shares), Normal: a.Normal, Wave: string(a.Wave),
		})
	}
	return nil
}
