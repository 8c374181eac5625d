package api

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// streamRetryMs tells browsers how long to wait before they connect again.
const streamRetryMs = "2000"

func (s *Server) streamRoutes(mux *http.ServeMux) {
	s.plain(mux, huma.Operation{
		OperationID: "anomaly-stream", Method: http.MethodGet, Path: "/api/v1/anomalies/stream",
		Summary:     "Anomalies as they open, change and close, as server-sent events",
		Description: "Events opened, changed and closed carry an anomaly; gap says that events may be missing and the list should be read again. Last-Event-ID resumes.",
		Parameters: []*huma.Param{
			deviceParam(),
			{Name: "Last-Event-ID", In: "header", Description: "id of the last event seen", Schema: stringSchema()},
		},
		Responses: map[string]*huma.Response{"200": {Description: "An endless stream", Content: map[string]*huma.MediaType{"text/event-stream": {}}}},
	}, s.getStream)
}

func (s *Server) getStream(w http.ResponseWriter, r *http.Request, p *params) error {
	device := p.device()
	if err := p.err(); err != nil {
		return err
	}
	if s.isClosing() {
		return &UnavailableError{Reason: "the node is shutting down"}
	}
	if !s.streams.TryAcquire(1) {
		return &UnavailableError{Reason: "too many event streams on this node", RetryAfter: 10 * time.Second}
	}
	defer s.streams.Release(1)
	events, cancel := s.backend.Events.Subscribe(r.Header.Get("Last-Event-ID"))
	defer cancel()
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()

	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	out := &eventWriter{w: w, rc: http.NewResponseController(w), device: device, buf: make([]byte, 0, rowsBufferBytes)}
	out.buf = append(out.buf, "retry: "+streamRetryMs+"\n\n"...)
	s.pump(out, events, r)
	return nil
}

// pump writes events until the reader, the hub or the server ends the stream.
func (s *Server) pump(out *eventWriter, events <-chan Event, r *http.Request) {
	heartbeat := time.NewTicker(s.cfg.Heartbeat)
	defer heartbeat.Stop()
	for out.flush() == nil {
		select {
		case e, ok := <-events:
			if !ok {
				if !s.isClosing() {
					s.metrics.cut.Inc()
				}
				return
			}
			out.event(&e)
			for len(out.buf) < rowsBufferBytes && len(events) > 0 { // what waits goes out with it
				if e, ok = <-events; ok {
					out.event(&e)
				} else {
					break
				}
			}
		case <-heartbeat.C:
			out.heartbeat()
		case <-r.Context().Done():
			return
		case <-s.closing:
			return
		}
	}
}

type eventWriter struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	device string // "" is all
	buf    []byte
	seen   string // id of the last event of any device
	sent   string // id that the reader knows
}

func (o *eventWriter) event(e *Event) {
	if e.ID != "" {
		o.seen = e.ID
	}
	if o.device != "" && e.Kind != EventGap && e.Anomaly.Device != o.device {
		return
	}
	if e.ID != "" {
		o.buf = append(o.buf, "id: "+e.ID+"\n"...)
		o.sent = e.ID
	}
	o.buf = append(o.buf, "event: "+string(e.Kind)+"\ndata: "...)
	if e.Kind == EventGap {
		o.buf = append(o.buf, `{"detail":"events may be missing here: list /api/v1/anomalies"}`...)
	} else {
		data, err := json.Marshal(AnomalyOf(&e.Anomaly))
		if err != nil { // strings, numbers and our own scalars always marshal
			data = []byte("{}")
		}
		o.buf = append(o.buf, data...)
	}
	o.buf = append(o.buf, "\n\n"...)
}

// heartbeat keeps the connection alive and moves the reader's place on when it
// filters: an id without data dispatches nothing.
func (o *eventWriter) heartbeat() {
	if o.seen != o.sent {
		o.buf = append(o.buf, "id: "+o.seen+"\n"...)
		o.sent = o.seen
	}
	o.buf = append(o.buf, ": heartbeat\n\n"...)
}

func (o *eventWriter) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	_, err := o.w.Write(o.buf)
	o.buf = o.buf[:0]
	if err != nil {
		return err
	}
	return o.rc.Flush()
}
