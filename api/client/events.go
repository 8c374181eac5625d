package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/api"
)

const (
	// streamSilenceMax is how long a stream may be silent before it counts as
	// dead: four heartbeats of a node.
	streamSilenceMax = time.Minute
	streamRetry      = 2 * time.Second // until the node says otherwise
	streamRetryMax   = 30 * time.Second
	streamLineMax    = 1 << 20
)

// EventsQuery selects events.
type EventsQuery struct {
	Device string // "" is every device
	After  string // id of the last event seen; "" is from now on
}

// Event is one change of an anomaly. For api.EventGap the anomaly is empty:
// events may be missing, list the anomalies again.
type Event struct {
	ID      string
	Kind    api.EventKind
	Anomaly api.Anomaly
}

// errRefused ends a stream that no repeat would mend.
var errRefused = errors.New("stream refused")

// Events follows the anomalies of the cluster until ctx ends or the loop is
// left. A broken stream is taken up again where it ended; a node that cannot be
// reached at the first attempt, or refuses, ends it with an error. Events arrive
// at least once.
func (c *Client) Events(ctx context.Context, q EventsQuery) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		s := &stream{client: c, device: q.Device, last: q.After, retry: streamRetry}
		for attempt := 0; ; attempt++ {
			got, more, err := s.follow(ctx, yield)
			if !more || ctx.Err() != nil {
				return
			}
			if errors.Is(err, errRefused) || !s.connected {
				yield(Event{}, err)
				return
			}
			if got {
				attempt = 0
			}
			if sleep(ctx, min(s.retry<<min(attempt, 4), streamRetryMax)) != nil {
				return
			}
		}
	}
}

type stream struct {
	client    *Client
	device    string
	last      string // id to resume after
	retry     time.Duration
	connected bool // at least once
}

// follow reads one connection to its end. more is false when the caller has left.
func (s *stream) follow(ctx context.Context, yield func(Event, error) bool) (got, more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &call{method: http.MethodGet, path: "/api/v1/anomalies/stream", query: url.Values{}, header: http.Header{"Accept": {"text/event-stream"}}}
	if s.device != "" {
		r.query.Set("device", s.device)
	}
	if s.last != "" {
		r.header["Last-Event-Id"] = []string{s.last}
	}
	r.once = s.connected // later attempts are counted by Events
	res, err := s.client.do(ctx, r)
	if err != nil {
		var answered *Error
		if errors.As(err, &answered) && !transient(answered.Status) {
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		return false, true, err
	}
	defer func() { _ = res.Body.Close() }()
	s.connected = true
	silence := time.AfterFunc(streamSilenceMax, cancel)
	defer silence.Stop()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(make([]byte, 4<<10), streamLineMax)
	var frame frame
	for lines.Scan() {
		silence.Reset(streamSilenceMax)
		if !frame.line(lines.Text()) {
			continue
		}
		e, ok, err := s.take(&frame)
		if err != nil {
			return got, true, err
		}
		if ok {
			got = true
			if !yield(e, nil) {
				return got, false, nil
			}
		}
	}
	return got, true, errors.New("the stream ended")
}

// take makes an event of a frame; ok is false for one that only moves the place
// or the pause on.
func (s *stream) take(f *frame) (e Event, ok bool, err error) {
	defer func() { *f = frame{} }()
	if f.retry > 0 {
		s.retry = f.retry
	}
	if f.hasID {
		s.last = f.id
	}
	if f.data == "" {
		return e, false, nil
	}
	e = Event{ID: f.id, Kind: api.EventKind(f.event)}
	if e.Kind == api.EventGap {
		return e, true, nil
	}
	if err := json.Unmarshal([]byte(f.data), &e.Anomaly); err != nil {
		return e, false, fmt.Errorf("read event %s: %w", f.id, err)
	}
	return e, true, nil
}

// frame collects the lines of one server-sent event.
type frame struct {
	id    string
	hasID bool
	event string
	data  string
	retry time.Duration
}

// line adds a line; true means that the frame is complete.
func (f *frame) line(text string) bool {
	if text == "" {
		return true
	}
	name, value, _ := strings.Cut(text, ":")
	value = strings.TrimPrefix(value, " ")
	switch name {
	case "id":
		f.id, f.hasID = value, true
	case "event":
		f.event = value
	case "data":
		if f.data != "" {
			f.data += "\n"
		}
		f.data += value
	case "retry":
		if ms, err := strconv.Atoi(value); err == nil && ms > 0 {
			f.retry = time.Duration(ms) * time.Millisecond
		}
	}
	return false
}
