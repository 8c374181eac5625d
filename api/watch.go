package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sluice-iot/sluice/internal/clock"
)

// Watch takes an operator's word about anomalies.
type Watch interface {
	// Maintain says that nothing of a device is an anomaly until a time of
	// receipt, in microseconds; one that has passed ends a maintenance.
	// ErrNotFound when the device is not known. Repeating it is harmless.
	Maintain(ctx context.Context, device string, until int64) error
	// Normal says that an anomaly was none: it closes, and its pattern counts less
	// for that device. ErrNotFound when it is not listed any more.
	Normal(ctx context.Context, anomaly string) error
	// Target sets how many false alarms a device may raise in 30 days, cluster-wide.
	// ErrInvalid for a number that is out of range.
	Target(ctx context.Context, perMonth float64) error
	// Range says what a sensor can measure, on every device; clear makes it
	// unknown again. ErrInvalid for an empty range.
	Range(ctx context.Context, r SensorRange, clear bool) error
	// Settings are what Target and Range have set.
	Settings(ctx context.Context) (WatchSettings, error)
}

// SensorRange is what a sensor can measure.
type SensorRange struct {
	Sensor string `json:"sensor"`
	Min    Float  `json:"min"`
	Max    Float  `json:"max"`
}

// WatchSettings are the settings of the detectors, cluster-wide.
type WatchSettings struct {
	AlarmsPerDeviceMonth Float         `json:"alarms_per_device_month"`
	Ranges               []SensorRange `json:"ranges"` // by sensor
}

const (
	maintenanceMax      = 366 * 24 * time.Hour // a forgotten maintenance hides every fault
	watchBodyBytesMax   = 4 << 10
	maintenanceExample  = `{"duration":"2h"}`
	maintenanceRequired = "an object with duration (2h30m) or until (RFC 3339), " + maintenanceExample + " for example"
)

func (s *Server) watchRoutes(mux *http.ServeMux) {
	done := map[string]*huma.Response{"204": {Description: "Done, on all replicas"}}
	schema := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{
		"duration": {Type: huma.TypeString, Description: "from now on", Examples: []any{"2h"}}, "until": {Type: huma.TypeString, Format: "date-time"},
	}}
	s.plain(mux, huma.Operation{
		OperationID: "maintain", Method: http.MethodPut, Path: "/api/v1/devices/{id}/maintenance", Summary: "Raise no anomalies of a device for a while",
		Description: "Readings are stored and scored as ever, and the detectors go on learning; anomalies that would open before the end are not raised. At most 366 days.",
		Parameters:  []*huma.Param{pathParam("id", "device")}, Responses: done,
		RequestBody: &huma.RequestBody{Required: true, Description: maintenanceRequired, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}},
	}, s.maintain)
	s.plain(mux, huma.Operation{
		OperationID: "end-maintenance", Method: http.MethodDelete, Path: "/api/v1/devices/{id}/maintenance", Summary: "End a maintenance early",
		Parameters: []*huma.Param{pathParam("id", "device")}, Responses: done,
	}, func(w http.ResponseWriter, r *http.Request, p *params) error {
		id := p.pathDevice()
		if err := p.err(); err != nil {
			return err
		}
		return s.watched(w, r, func(ctx context.Context) error { return s.backend.Watch.Maintain(ctx, id, 0) })
	})
	target := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{"alarms_per_device_month": {Type: huma.TypeNumber, Examples: []any{1}}}}
	s.plain(mux, huma.Operation{
		OperationID: "target", Method: http.MethodPut, Path: "/api/v1/anomalies/target", Summary: "Set how many false alarms a device may raise in 30 days",
		Description: "The one knob of the detectors, for the whole cluster, 0.001 to 10000; the default is 1. Every shard takes it through its log; repeat the request after a 503.",
		Responses:   done,
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: target}}},
	}, s.setTarget)
	register(s, huma.Operation{
		OperationID: "settings", Method: http.MethodGet, Path: "/api/v1/anomalies/settings", Summary: "The target of false alarms and the physical ranges of sensors",
		DefaultStatus: http.StatusOK,
	}, func(ctx context.Context, p *params) (WatchSettings, error) {
		if err := p.err(); err != nil {
			return WatchSettings{}, err
		}
		return s.backend.Watch.Settings(ctx)
	})
	s.rangeRoutes(mux, done)
	s.plain(mux, huma.Operation{
		OperationID: "normal", Method: http.MethodPost, Path: "/api/v1/anomalies/{id}/normal", Summary: "This was normal: close an anomaly and lower its pattern for that device",
		Parameters: []*huma.Param{pathParam("id", "of the anomaly")}, Responses: done,
	}, func(w http.ResponseWriter, r *http.Request, p *params) error {
		id := p.path("id")
		if err := p.err(); err != nil {
			return err
		}
		return s.watched(w, r, func(ctx context.Context) error { return s.backend.Watch.Normal(ctx, id) })
	})
}

// rangeRoutes are those of physical ranges.
func (s *Server) rangeRoutes(mux *http.ServeMux, done map[string]*huma.Response) {
	number := &huma.Schema{Type: huma.TypeNumber}
	schema := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{"min": number, "max": number}, Required: []string{"min", "max"}}
	const path = "/api/v1/anomalies/ranges/{sensor}"
	s.plain(mux, huma.Operation{
		OperationID: "set-range", Method: http.MethodPut, Path: path, Summary: "Say what a sensor can measure, on every device",
		Description: "A value outside is an anomaly with the cause \"out of physical range\", from the first reading on. Every shard takes it through its log; repeat the request after a 503.",
		Parameters:  []*huma.Param{pathParam("sensor", "name")}, Responses: done,
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}},
	}, s.setRange)
	s.plain(mux, huma.Operation{
		OperationID: "clear-range", Method: http.MethodDelete, Path: path, Summary: "Forget what a sensor can measure",
		Parameters: []*huma.Param{pathParam("sensor", "name")}, Responses: done,
	}, func(w http.ResponseWriter, r *http.Request, p *params) error {
		name := p.path("sensor")
		if err := p.err(); err != nil {
			return err
		}
		return s.watched(w, r, func(ctx context.Context) error {
			return s.backend.Watch.Range(ctx, SensorRange{Sensor: name}, true)
		})
	})
}

func (s *Server) setRange(w http.ResponseWriter, r *http.Request, p *params) error {
	name := p.path("sensor")
	if err := p.err(); err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, watchBodyBytesMax))
	if err != nil {
		return s.bodyError(err, 0)
	}
	var want struct{ Min, Max *float64 }
	if err := json.Unmarshal(body, &want); err != nil || want.Min == nil || want.Max == nil {
		return newProblem(http.StatusBadRequest, `the body is no range: send {"min":-40,"max":125}`)
	}
	err = s.watched(w, r, func(ctx context.Context) error {
		return s.backend.Watch.Range(ctx, SensorRange{Sensor: name, Min: Float(*want.Min), Max: Float(*want.Max)}, false)
	})
	if errors.Is(err, ErrInvalid) {
		return newProblem(http.StatusUnprocessableEntity, "%v", err)
	}
	return err
}

func (s *Server) setTarget(w http.ResponseWriter, r *http.Request, p *params) error {
	if err := p.err(); err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, watchBodyBytesMax))
	if err != nil {
		return s.bodyError(err, 0)
	}
	var want struct {
		PerMonth *float64 `json:"alarms_per_device_month"`
	}
	if err := json.Unmarshal(body, &want); err != nil || want.PerMonth == nil {
		return newProblem(http.StatusBadRequest, `the body is no target of false alarms: send {"alarms_per_device_month":1}`)
	}
	err = s.watched(w, r, func(ctx context.Context) error { return s.backend.Watch.Target(ctx, *want.PerMonth) })
	if errors.Is(err, ErrInvalid) {
		return newProblem(http.StatusUnprocessableEntity, "%v", err)
	}
	return err
}

// watched waits for the word to be in the log of the device's shard.
func (s *Server) watched(w http.ResponseWriter, r *http.Request, say func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(r.Context(), attributesWait)
	defer cancel()
	if err := say(ctx); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) maintain(w http.ResponseWriter, r *http.Request, p *params) error {
	id := p.pathDevice()
	if err := p.err(); err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, watchBodyBytesMax))
	if err != nil {
		return s.bodyError(err, 0)
	}
	until, err := maintenanceEnd(body, clock.Wall(time.Now()))
	if err != nil {
		return newProblem(http.StatusBadRequest, "%v", err)
	}
	return s.watched(w, r, func(ctx context.Context) error { return s.backend.Watch.Maintain(ctx, id, until.UnixMicro()) })
}

func maintenanceEnd(body []byte, now time.Time) (time.Time, error) {
	var want struct {
		Duration string
		Until    *time.Time
	}
	if err := json.Unmarshal(body, &want); err != nil || (want.Duration == "") == (want.Until == nil) {
		return now, errors.New("the body is no maintenance: send " + maintenanceRequired)
	}
	end := now
	if want.Until != nil {
		end = *want.Until
	} else {
		d, err := time.ParseDuration(want.Duration)
		if err != nil {
			return now, errors.New("duration " + want.Duration + " is none: use 90m, 2h or 36h, for example")
		}
		end = now.Add(d)
	}
	if !end.After(now) || end.After(now.Add(maintenanceMax)) {
		return now, errors.New("the maintenance must end between now and 366 days from now: choose an end within that; DELETE ends one early")
	}
	return end, nil
}
