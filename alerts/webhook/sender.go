package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/internal/clock"
)

// Event is what a receiver reads.
type Event struct {
	Kind     string          `json:"event"`  // opened, changed or closed
	ID       string          `json:"id"`     // of the anomaly
	Change   uint64          `json:"change"` // number of the change: an event is told apart by id and change
	Severity float64         `json:"severity"`
	Grade    string          `json:"grade"`
	Anomaly  json.RawMessage `json:"anomaly"` // as the API lists it

	// Done is called once the event is taken, is a dead letter on the disk or is
	// not wanted at all; it must not block. With it, an event that still waits when
	// the node stops is no dead letter: whoever keeps it sends it again.
	Done func() `json:"-"`
}

func (e *Event) done() {
	if e.Done != nil {
		e.Done()
	}
}

// key tells events apart: a repeat has the same.
func (e *Event) key() string {
	return e.ID + " " + e.Kind + " " + strconv.FormatUint(e.Change, 10)
}

// deadLetter is a line of the file.
type deadLetter struct {
	Time   time.Time `json:"time"`
	Reason string    `json:"reason"`
	Event  Event     `json:"event"`
}

// Sender delivers events. Send may be called from many goroutines, Run once.
type Sender struct {
	logger  *slog.Logger
	metrics *metrics
	cfg     Config
	client  *http.Client
	queue   chan Event
	dead    chan deadLetter // events that Send had no room for
}

// New makes a sender that Run starts.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config) (*Sender, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.defaults()
	return &Sender{
		logger: logger, metrics: newMetrics(reg), cfg: cfg, queue: make(chan Event, queueMax), dead: make(chan deadLetter, queueMax),
		client: &http.Client{Timeout: cfg.Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

// Send queues an event; it never blocks.
func (s *Sender) Send(e Event) {
	if e.Severity < s.cfg.SeverityMin {
		e.done()
		return
	}
	select {
	case s.queue <- e:
		return
	default:
	}
	select {
	case s.dead <- deadLetter{Reason: "too many events wait", Event: e}:
	default:
		s.metrics.lost.Inc()
		s.logger.Error("anomaly event lost: the receiver and the file of dead letters are both behind", "id", e.ID)
	}
}

// Run delivers until ctx ends; what waits then becomes dead letters.
func (s *Sender) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			s.drain()
			return
		case d := <-s.dead:
			s.bury(d.Event, d.Reason)
		case e := <-s.queue:
			err := s.deliver(ctx, &e)
			switch {
			case err == nil:
				e.done()
			case ctx.Err() != nil && e.Done != nil: // it is sent again by whoever keeps it
			default:
				s.bury(e, err.Error())
			}
		}
	}
}

func (s *Sender) drain() {
	for {
		select {
		case d := <-s.dead:
			s.bury(d.Event, d.Reason)
		case e := <-s.queue:
			if e.Done == nil {
				s.bury(e, "the node stopped before it was sent")
			}
		default:
			return
		}
	}
}

// finalError is an answer that another attempt would not change.
type finalError struct{ status int }

func (e *finalError) Error() string { return "answered with " + http.StatusText(e.status) }

// deliver tries until the event is taken, refused for good, or out of attempts.
func (s *Sender) deliver(ctx context.Context, e *Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	pause := s.cfg.Pause
	for attempt := 1; ; attempt++ {
		err := s.attempt(ctx, e, body)
		if err == nil {
			s.metrics.sent.Inc()
			return nil
		}
		var final *finalError
		if errors.As(err, &final) || attempt >= s.cfg.Attempts {
			return fmt.Errorf("attempt %d: %w", attempt, err)
		}
		s.metrics.retries.Inc()
		s.logger.Warn("anomaly event not taken, trying again", "id", e.ID, "err", err, "pause", pause)
		select {
		case <-ctx.Done():
			return fmt.Errorf("attempt %d: %w, and the node stopped", attempt, err)
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

func (s *Sender) attempt(ctx context.Context, e *Event, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	stamp := strconv.FormatInt(clock.Wall(time.Now()).Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Sluice-Event", e.key())
	req.Header.Set("X-Sluice-Timestamp", stamp)
	req.Header.Set("X-Sluice-Signature", Signature(s.cfg.Secret, stamp, body))
	res, err := s.client.Do(req)
	if err != nil {
		return fmt.Errorf("post event: %w", err)
	}
	defer func() { _ = res.Body.Close() }()                              // nothing of it is used
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, answerBytesMax)) // so that the connection can be used again
	switch c := res.StatusCode; {
	case c >= 200 && c < 300:
		return nil
	case c >= 500, c == http.StatusRequestTimeout, c == http.StatusTooEarly, c == http.StatusTooManyRequests:
		return fmt.Errorf("answered with %s", res.Status)
	default:
		return &finalError{c}
	}
}

// Signature is what a receiver computes too and compares in constant time.
func Signature(secret, timestamp string, body []byte) string {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(timestamp))
	h.Write([]byte{'.'})
	h.Write(body)
	return "sha256=" + hex.EncodeToString(h.Sum(nil))
}

// bury writes a dead letter, durably.
func (s *Sender) bury(e Event, reason string) {
	s.metrics.dead.Inc()
	s.logger.Error("anomaly event is a dead letter: see the file, and why the receiver did not take it", "id", e.ID, "reason", reason, "file", s.cfg.DeadLetters)
	if err := s.write(&deadLetter{Time: time.Now().UTC(), Reason: reason, Event: e}); err != nil {
		s.metrics.lost.Inc()
		s.logger.Error("anomaly event lost", "id", e.ID, "err", err)
	}
	e.done()
}

func (s *Sender) write(d *deadLetter) error {
	line, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode dead letter: %w", err)
	}
	f, err := os.OpenFile(s.cfg.DeadLetters, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open dead letters: %w", err)
	}
	if st, err := f.Stat(); err == nil && st.Size() > deadBytesMax {
		return errors.Join(fmt.Errorf("%s holds %d bytes: move it away", s.cfg.DeadLetters, st.Size()), f.Close())
	}
	_, err = f.Write(append(line, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	return nil
}
