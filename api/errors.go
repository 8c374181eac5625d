package api

import (
	"errors"
	"fmt"
	"time"
)

// Errors a Backend returns, wrapped with what it was doing; everything else is
// answered with 500 and logged. context.DeadlineExceeded and
// store.ErrUnavailable count as ErrUnavailable.
var (
	ErrNotFound    = errors.New("not found")                          // 404
	ErrInvalid     = errors.New("invalid request")                    // 400; the text is shown to the user
	ErrConflict    = errors.New("conflicts with the cluster's state") // 409; the text is shown to the user
	ErrUnavailable = errors.New("unavailable")                        // 503 with Retry-After
	// ErrPrecondition answers a write under a precondition that did not hold.
	ErrPrecondition = errors.New("precondition failed") // 412
)

// RetryAfterDefault is what a 503 without a better estimate suggests: about the
// time of an election without the failure detector's help.
const RetryAfterDefault = 2 * time.Second

// UnavailableError is an ErrUnavailable that knows when to come back.
type UnavailableError struct {
	Reason     string        // what is missing, "shard 7 has no leader"
	RetryAfter time.Duration // 0 is RetryAfterDefault
	Err        error         // the cause, may be nil
}

func (e *UnavailableError) Error() string {
	if e.Err == nil {
		return e.Reason
	}
	if e.Reason == "" {
		return e.Err.Error()
	}
	return fmt.Sprintf("%s: %v", e.Reason, e.Err)
}

// Unwrap gives the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, ErrUnavailable) true.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }
