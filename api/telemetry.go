package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/zeebo/xxh3"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/telemetry"
)

// headerWriteToken repeats Counts.Token where it is short enough for a header: a
// body that touches a few hundred shards has it in its answer alone.
const (
	headerWriteToken = "Sluice-Write-Token"
	tokenHeaderMax   = 2048
)

// quotaRetryAfter is suggested when the cluster refuses for want of room: disks
// do not empty within seconds.
const quotaRetryAfter = 30 * time.Second

// line is one message under way. It is used again after its outcome came in.
type line struct {
	publish telemetry.Publish
	buf     []byte
	server  *Server
	tally   *tally
	number  int
	weight  int64
	done    func(telemetry.Result) // method value, made once
}

func newLine() *line {
	l := &line{}
	l.done = l.finish
	return l
}

func (l *line) finish(r telemetry.Result) {
	s, t, number := l.server, l.tally, l.number
	s.inflight.Release(l.weight)
	l.recycle()
	t.record(number, &r)
}

// recycle forgets everything but the buffer.
func (l *line) recycle() {
	s := l.server
	*l = line{buf: l.buf[:0], done: l.done}
	s.lines.Put(l)
}

func (s *Server) telemetryRoutes(mux *http.ServeMux) {
	header := func(name, doc string) *huma.Param {
		return &huma.Param{Name: name, In: "header", Description: doc, Schema: stringSchema()}
	}
	body := func(doc string) *huma.RequestBody {
		return &huma.RequestBody{Description: doc, Content: map[string]*huma.MediaType{"application/x-ndjson": {}, "application/json": {}}}
	}
	s.plain(mux, huma.Operation{
		OperationID: "publish", Method: http.MethodPost, Path: "/api/v1/telemetry", Summary: "Publish messages; 200 only when they are durable",
		Description: "422 when all messages are bad, 503 with Retry-After when an outcome is not known (send the same body again, best with the same Idempotency-Key), 429 when the cluster has no room.",
		Parameters: []*huma.Param{
			header("Idempotency-Key", "makes a repeat harmless for messages without a timestamp; a repeat hears the first counts"),
			header("Content-Encoding", "gzip or zstd"),
		},
		RequestBody: body("one message per line, an array of messages, or one message"),
		Responses:   map[string]*huma.Response{"200": jsonResponse[Counts](s, "All outcomes are durable")},
	}, s.postTelemetry)
	s.plain(mux, huma.Operation{
		OperationID: "replay", Method: http.MethodPost, Path: "/api/v1/quarantine/{id}/replay", Summary: "Publish a quarantined message again",
		Parameters:  []*huma.Param{pathParam("id", "of the quarantined message")},
		RequestBody: body("the corrected message; empty for the message as it is"),
		Responses:   map[string]*huma.Response{"200": jsonResponse[Counts](s, "The message left the quarantine")},
	}, s.postReplay)
}

func (s *Server) postTelemetry(w http.ResponseWriter, r *http.Request, p *params) error {
	if err := p.err(); err != nil {
		return err
	}
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return err
	}
	lines, err := bodyIsLines(r.Header)
	if err != nil {
		return err
	}
	encoding := r.Header.Get("Content-Encoding")
	if r.ContentLength > s.cfg.BodyBytesMax {
		return s.bodyTooLong()
	}
	raw, release, err := decompress(r.Body, encoding)
	if err != nil {
		return err
	}
	defer release()
	body := &cappedReader{r: raw, left: s.cfg.BodyBytesMax}
	defer func() { s.metrics.received.Add(float64(body.n)) }()
	if key == "" {
		counts, err := s.publish(r.Context(), newSplitter(body, lines, s.cfg.MessageBytesMax), "")
		if err == nil && body.n == 0 {
			err = invalid("the body is empty: send one message per line, or an array of messages")
		}
		return s.answer(w, counts, err)
	}
	return s.publishOnce(w, r, body, lines, key)
}

// publishOnce is publish for a request with an Idempotency-Key.
func (s *Server) publishOnce(w http.ResponseWriter, r *http.Request, body io.Reader, lines bool, key string) error {
	known, first, err := s.answers.begin(key)
	if err != nil {
		return err
	}
	hash := xxh3.New()
	if !first {
		if _, err := io.Copy(hash, body); err != nil {
			return s.answer(w, Counts{}, s.bodyError(err, 0))
		}
		if hash.Sum128() != known.body {
			return newProblem(http.StatusUnprocessableEntity, "this Idempotency-Key was used for another body: use a new key for every new request")
		}
		s.metrics.replayed.Inc()
		w.Header().Set("Idempotency-Replayed", "true")
		return s.answer(w, known.counts, nil)
	}
	final := false
	defer func() {
		if !final {
			s.answers.forget(key)
		}
	}()
	counts, err := s.publish(r.Context(), newSplitter(io.TeeReader(body, hash), lines, s.cfg.MessageBytesMax), key)
	if final = err == nil && verdict(&counts) != http.StatusServiceUnavailable && verdict(&counts) != http.StatusTooManyRequests; final {
		s.answers.finish(key, hash.Sum128(), counts)
	}
	return s.answer(w, counts, err)
}

// publish sends every message of a body on its way and waits for the outcomes.
// The error is about the body, or the client being gone; the counts hold in any
// case.
func (s *Server) publish(ctx context.Context, messages splitter, key string) (Counts, error) {
	t := newTally()
	timer := time.NewTimer(s.cfg.CommitTimeout)
	defer timer.Stop()
	number, err := s.submit(ctx, messages, key, t, timer)
	gone := ctx.Done()
	var timeout net.Error
	stalled := errors.As(err, &timeout) && timeout.Timeout()
	if stalled {
		gone = nil // net/http ends the context of a read that timed out, but somebody may listen
	}
	for t.openCount() > 0 && t.wait(gone, timer, s.cfg.CommitTimeout) {
	}
	counts := t.settle(s.backend.Cluster.ClusterID())
	s.metrics.outcomes(&counts)
	if ctx.Err() != nil && !stalled {
		return counts, ctx.Err()
	}
	return counts, s.bodyError(err, number)
}

// submit reads the body to its end, or to the first unknown outcome.
func (s *Server) submit(ctx context.Context, messages splitter, key string, t *tally, timer *time.Timer) (number int, err error) {
	for {
		l := s.lines.Get().(*line)
		l.server = s
		l.buf, number, err = messages.next(l.buf[:0])
		if err != nil {
			l.recycle()
			if errors.Is(err, errTooLong) {
				t.refuse(number, telemetry.RefusalTooLarge, fmt.Sprintf("message of more than %d bytes: split it", s.cfg.MessageBytesMax))
				continue
			}
			if err == io.EOF {
				err = nil
			}
			return number, err
		}
		if !s.reserve(ctx, l, t, timer) {
			l.recycle()
			return number, nil
		}
		l.tally, l.number = t, number
		l.publish = telemetry.Publish{Payload: l.buf, Received: clock.Micros(time.Now()), QoS: 1, Token: true}
		if key != "" {
			l.publish.Client, l.publish.PacketID, l.publish.Dup = keyOfLine(key, number), uint16(number), true
		}
		s.backend.Ingest.Publish(&l.publish, l.done)
	}
}

// keyOfLine tells line 1 from line 65,537, which have the same packet id.
func keyOfLine(key string, number int) string {
	if number>>16 == 0 {
		return key
	}
	return key + "#" + strconv.Itoa(number>>16)
}

// reserve waits for a place among the messages in flight, those of this request
// and the bytes of all. false: read no further; the message was not begun, and
// the client will have to send it again.
func (s *Server) reserve(ctx context.Context, l *line, t *tally, timer *time.Timer) bool {
	for {
		ok, stopped := t.begin()
		if ok {
			break
		}
		if stopped || !t.wait(ctx.Done(), timer, s.cfg.CommitTimeout) {
			t.unknown()
			return false
		}
	}
	l.weight = int64(len(l.buf))
	if s.inflight.TryAcquire(l.weight) {
		return true
	}
	wait, cancel := context.WithTimeout(ctx, s.cfg.CommitTimeout)
	defer cancel()
	if s.inflight.Acquire(wait, l.weight) == nil {
		return true
	}
	l.weight = 0
	t.record(0, &telemetry.Result{Unknown: 1})
	return false
}

// bodyError turns what ended a body early into a problem.
func (s *Server) bodyError(err error, number int) error {
	var envelope *envelopeError
	var encoding *encodingError
	var timeout net.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errBodyTooLong):
		return s.bodyTooLong()
	case errors.As(err, &envelope):
		return invalid("%s; what came before is counted here and stays", envelope.text)
	case errors.As(err, &encoding):
		return invalid("the body does not decompress after message %d (%v): compress it again", number, encoding)
	case errors.As(err, &timeout) && timeout.Timeout():
		return newProblem(http.StatusRequestTimeout, "the body stopped for %s after message %d: send it without pauses, or in several requests", s.cfg.ProgressTimeout, number)
	}
	return invalid("the body broke off after message %d (%v): send it again", number, err)
}

func (s *Server) bodyTooLong() error {
	return newProblem(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes: send it in several requests", s.cfg.BodyBytesMax)
}

// verdict is the status for a whole body by its outcomes.
func verdict(c *Counts) int {
	good := c.Applied + c.Duplicate
	switch {
	case c.Unknown > 0:
		return http.StatusServiceUnavailable
	case c.refusals[telemetry.RefusalQuota] > 0:
		return http.StatusTooManyRequests
	case c.Received > 0 && good == 0 && c.refusals[telemetry.RefusalTooLarge] == c.Received:
		return http.StatusRequestEntityTooLarge
	case c.Received > 0 && good == 0:
		return http.StatusUnprocessableEntity
	}
	return http.StatusOK
}

// answer writes the counts, inside a problem where they are no success.
func (s *Server) answer(w http.ResponseWriter, c Counts, cause error) error {
	if c.Errors == nil {
		c.Errors = []LineError{}
	}
	if c.Token != "" && len(c.Token) <= tokenHeaderMax {
		w.Header().Set(headerWriteToken, c.Token)
	}
	var p *Problem
	if errors.As(cause, &p) {
		p.Counts = &c
		return p
	}
	if cause != nil {
		return cause
	}
	status := verdict(&c)
	switch status {
	case http.StatusOK:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = marshalBody(w, &c) // the client is gone if this fails; it will repeat
		return nil
	case http.StatusServiceUnavailable:
		p = newProblem(status, "the outcome of %d messages is not known: send the same body again, repeats are recognised", c.Unknown)
		p.retryAfter = RetryAfterDefault
	case http.StatusTooManyRequests:
		p = newProblem(status, "the cluster has no room for %d messages: send the same body again later", c.refusals[telemetry.RefusalQuota])
		p.retryAfter = quotaRetryAfter
	case http.StatusRequestEntityTooLarge:
		p = newProblem(status, "every message is longer than %d bytes: split them", s.cfg.MessageBytesMax)
	default:
		p = newProblem(status, "none of %d messages is telemetry: errors says why, the payloads are in /api/v1/quarantine", c.Received)
	}
	p.Counts = &c
	return p
}

func (s *Server) postReplay(w http.ResponseWriter, r *http.Request, p *params) error {
	if err := p.err(); err != nil {
		return err
	}
	payload, err := io.ReadAll(io.LimitReader(r.Body, int64(s.cfg.MessageBytesMax)+1))
	if err != nil {
		return s.bodyError(err, 0)
	}
	if len(payload) > s.cfg.MessageBytesMax {
		return newProblem(http.StatusRequestEntityTooLarge, "the message is longer than %d bytes: split it", s.cfg.MessageBytesMax)
	}
	if len(payload) == 0 {
		payload = nil
	}
	result, err := s.backend.Quarantine.ReplayQuarantine(r.Context(), p.path("id"), payload)
	if err != nil {
		return err
	}
	t := newTally()
	t.open = 1
	t.record(1, &result)
	counts := t.settle(s.backend.Cluster.ClusterID())
	return s.answer(w, counts, nil)
}
