package api

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sluice-iot/sluice/fleet"
	"github.com/sluice-iot/sluice/internal/clock"
)

// listBufferBytes is how much of a list is collected before it is sent.
const listBufferBytes = 32 << 10

// writeList writes {"name":[...],"next":"..."} element by element: a page of
// 100,000 is never built as text.
func writeList[T any](w io.Writer, name string, entries []T, next string) error {
	b := bufio.NewWriterSize(w, listBufferBytes)
	_, _ = b.WriteString(`{"` + name + `":[`) // a bufio.Writer keeps its error for Flush
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	for i := range entries {
		if i > 0 {
			_ = b.WriteByte(',')
		}
		if err := enc.Encode(&entries[i]); err != nil {
			return err
		}
	}
	_ = b.WriteByte(']')
	if next != "" {
		_, _ = b.WriteString(`,"next":"` + next + `"`) // base64url needs no escape
	}
	_, _ = b.WriteString("}\n")
	return b.Flush()
}

func (l DeviceList) writeJSON(w io.Writer) error { return writeList(w, "devices", l.Devices, l.Next) }

func (l AnomalyList) writeJSON(w io.Writer) error {
	return writeList(w, "anomalies", l.Anomalies, l.Next)
}

func (l QuarantineList) writeJSON(w io.Writer) error {
	return writeList(w, "quarantine", l.Quarantine, l.Next)
}

// page cuts what was asked for with one entry more than the limit: that entry
// says that there is a next page.
func page[T any](entries []T, limit int, cursor func(*T) string) ([]T, string) {
	if len(entries) <= limit {
		return entries, ""
	}
	return entries[:limit], cursor(&entries[limit-1])
}

func (s *Server) listRoutes() {
	register(s, huma.Operation{
		OperationID: "devices", Method: http.MethodGet, Path: "/api/v1/devices", Summary: "Devices by id",
		Parameters: append([]*huma.Param{
			queryParam("where", `only devices that this selects: attributes.model = "x1" and (last_seen < -1h or anomaly)`, stringSchema()), afterWriteParam(),
		}, pageParams(ReadingsLimitMax)...), DefaultStatus: http.StatusOK,
	}, s.listDevices)
	register(s, huma.Operation{
		OperationID: "device", Method: http.MethodGet, Path: "/api/v1/devices/{id}", Summary: "One device with its latest readings and open anomalies",
		Parameters: []*huma.Param{pathParam("id", "device"), afterWriteParam()}, DefaultStatus: http.StatusOK,
	}, func(ctx context.Context, p *params) (Device, error) {
		id, writes := p.pathDevice(), s.afterWrite(p)
		if err := p.err(); err != nil {
			return Device{}, err
		}
		if err := s.await(ctx, id, writes); err != nil {
			return Device{}, err
		}
		return s.backend.Reader.Device(ctx, id)
	})
	register(s, huma.Operation{
		OperationID: "anomalies", Method: http.MethodGet, Path: "/api/v1/anomalies", Summary: "Anomalies, newest first, by the time they opened",
		Parameters:    slices.Concat([]*huma.Param{deviceParam(), queryParam("open", "only open ones, or only closed ones", &huma.Schema{Type: huma.TypeBoolean})}, periodParams(), pageParams(ReadingsLimitMax)),
		DefaultStatus: http.StatusOK,
	}, s.listAnomalies)
	register(s, huma.Operation{
		OperationID: "quarantine", Method: http.MethodGet, Path: "/api/v1/quarantine", Summary: "Messages that are no telemetry, newest first",
		Parameters: slices.Concat([]*huma.Param{deviceParam()}, periodParams(), pageParams(QuarantineLimitMax)), DefaultStatus: http.StatusOK,
	}, s.listQuarantine)
	huma.Register(s.huma, operation(huma.Operation{
		OperationID: "drop", Method: http.MethodDelete, Path: "/api/v1/quarantine/{id}", Summary: "Remove a quarantined message for good",
		Parameters: []*huma.Param{pathParam("id", "of the quarantined message")}, DefaultStatus: http.StatusNoContent,
	}), func(ctx context.Context, p *params) (*struct{}, error) {
		if err := p.err(); err != nil {
			return nil, err
		}
		if err := s.backend.Quarantine.DropQuarantine(ctx, p.path("id")); err != nil {
			return nil, s.problem(ctx, err)
		}
		return nil, nil
	})
}

func (s *Server) listDevices(ctx context.Context, p *params) (DeviceList, error) {
	now := time.Now()
	q := DeviceQuery{Where: p.query.Get("where"), Now: clock.Micros(now)}
	limit := p.limit(ReadingsLimitMax)
	q.Limit = limit + 1
	if c := p.query.Get("cursor"); c != "" {
		var err error
		if q.After, err = decodeDeviceCursor(c); err != nil {
			p.problem("%v", err)
		}
	}
	if p.query.Has("where") {
		if _, err := fleet.Parse(q.Where, now); err != nil {
			p.problem("%v", err)
		}
	}
	writes := s.afterWrite(p)
	if err := p.err(); err != nil {
		return DeviceList{}, err
	}
	release, err := s.acquireRead(ctx)
	if err != nil {
		return DeviceList{}, err
	}
	defer release()
	if err := s.await(ctx, "", writes); err != nil {
		return DeviceList{}, err
	}
	devices, err := s.backend.Reader.Devices(ctx, q)
	if err != nil {
		return DeviceList{}, err
	}
	var list DeviceList
	list.Devices, list.Next = page(devices, limit, func(d *Device) string { return encodeDeviceCursor(d.ID) })
	return list, nil
}

func (s *Server) listAnomalies(ctx context.Context, p *params) (AnomalyList, error) {
	q := AnomalyQuery{Device: p.device(), Open: p.boolean("open"), After: p.position()}
	q.From, q.To = p.period()
	limit := p.limit(ReadingsLimitMax)
	q.Limit = limit + 1
	if err := p.err(); err != nil {
		return AnomalyList{}, err
	}
	release, err := s.acquireRead(ctx)
	if err != nil {
		return AnomalyList{}, err
	}
	defer release()
	found, err := s.backend.Reader.Anomalies(ctx, q)
	if err != nil {
		return AnomalyList{}, err
	}
	all := make([]Anomaly, len(found))
	for i := range found {
		all[i] = AnomalyOf(&found[i])
	}
	var list AnomalyList
	list.Anomalies, list.Next = page(all, limit, func(a *Anomaly) string { return encodePosition(Position{Time: int64(a.Opened), ID: a.ID}) })
	return list, nil
}

func (s *Server) listQuarantine(ctx context.Context, p *params) (QuarantineList, error) {
	q := QuarantineQuery{Device: p.device(), After: p.position()}
	q.From, q.To = p.period()
	limit := p.limit(QuarantineLimitMax)
	q.Limit = limit + 1
	if err := p.err(); err != nil {
		return QuarantineList{}, err
	}
	release, err := s.acquireRead(ctx)
	if err != nil {
		return QuarantineList{}, err
	}
	defer release()
	found, err := s.backend.Quarantine.Quarantined(ctx, q)
	if err != nil {
		return QuarantineList{}, err
	}
	var list QuarantineList
	list.Quarantine, list.Next = page(found, limit, func(m *Quarantined) string {
		return encodePosition(Position{Time: int64(m.Received), ID: m.ID})
	})
	return list, nil
}
