package webhook

import (
	"errors"
	"fmt"
	"net/url"
	"time"
)

// Config says where events go.
type Config struct {
	URL    string // http or https
	Secret string // key of the signature, 16 bytes or more
	// SeverityMin leaves out anomalies below it; 0 sends all.
	SeverityMin float64
	// Timeout of one attempt. Default 10 s.
	Timeout time.Duration
	// Attempts until an event is a dead letter. Default 8: with pauses of 1, 2, 4 ...
	// at most 60 s, about three minutes.
	Attempts int
	// DeadLetters is the file to which events go that nobody took, a line of JSON
	// each. It is closed to further ones at 64 MiB; they are counted and logged.
	DeadLetters string

	// Pause before the second attempt; doubled from attempt to attempt. Default 1 s.
	Pause time.Duration
}

const (
	queueMax        = 4096 // events that wait: a minute of 70 a second
	timeoutUsual    = 10 * time.Second
	attemptsUsual   = 8
	attemptsMax     = 100
	pauseUsual      = time.Second
	pauseMax        = 60 * time.Second
	deadBytesMax    = 64 << 20
	secretBytesMin  = 16
	answerBytesMax  = 4 << 10 // of an answer are read, so that the connection can be used again
	severityHighest = 100
)

// Validate returns every problem at once.
func (c *Config) Validate() error {
	var errs []error
	if u, err := url.Parse(c.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		errs = append(errs, fmt.Errorf("url %q is no http or https URL", c.URL))
	}
	if len(c.Secret) < secretBytesMin {
		errs = append(errs, fmt.Errorf("secret has %d bytes: use %d or more, so that receivers can trust the signature", len(c.Secret), secretBytesMin))
	}
	if !(c.SeverityMin >= 0 && c.SeverityMin <= severityHighest) {
		errs = append(errs, fmt.Errorf("severity_min is %v: use 0 to 100", c.SeverityMin))
	}
	if c.Timeout < 0 || c.Pause < 0 {
		errs = append(errs, errors.New("timeout and pause must not be negative"))
	}
	if c.Attempts < 0 || c.Attempts > attemptsMax {
		errs = append(errs, fmt.Errorf("attempts is %d: use 1 to %d, or 0 for %d", c.Attempts, attemptsMax, attemptsUsual))
	}
	if c.DeadLetters == "" {
		errs = append(errs, errors.New("dead_letters is empty: name the file for events that nobody takes"))
	}
	return errors.Join(errs...)
}

func (c *Config) defaults() {
	if c.Timeout == 0 {
		c.Timeout = timeoutUsual
	}
	if c.Attempts == 0 {
		c.Attempts = attemptsUsual
	}
	if c.Pause == 0 {
		c.Pause = pauseUsual
	}
}
