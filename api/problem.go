package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sluice-iot/sluice/store"
)

// ProblemContentType marks every answer that is not a success (RFC 9457).
const ProblemContentType = "application/problem+json"

// statusClientClosed is nginx's number for a client that went away; nobody but
// the metrics sees it.
const statusClientClosed = 499

// Problem is an RFC 9457 problem. Its type is always "about:blank" and therefore
// absent: Title is the text of Status, Detail says what is wrong and what to do.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	// Counts says what became of the messages of POST /api/v1/telemetry.
	*Counts

	retryAfter time.Duration // 0 sends no Retry-After
}

func (p *Problem) Error() string { return p.Detail }

// GetStatus makes a Problem an error that huma answers with as it is.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders adds Retry-After where it is known.
func (p *Problem) GetHeaders() http.Header {
	if p.retryAfter <= 0 {
		return nil
	}
	seconds := int64(math.Ceil(p.retryAfter.Seconds()))
	return http.Header{"Retry-After": {strconv.FormatInt(seconds, 10)}}
}

// ContentType names the media type for huma.
func (p *Problem) ContentType(string) string { return ProblemContentType }

func newProblem(status int, format string, args ...any) *Problem {
	title := http.StatusText(status)
	if status == statusClientClosed {
		title = "Client Closed Request"
	}
	return &Problem{Title: title, Status: status, Detail: fmt.Sprintf(format, args...)}
}

// invalid is an ErrInvalid whose text is all that the user needs.
func invalid(format string, args ...any) error {
	return newProblem(http.StatusBadRequest, format, args...)
}

// problemOf finds the problem for an error of the backend. known is false for an
// error that is nobody's fault but ours and must be logged.
func problemOf(err error) (p *Problem, known bool) {
	var unavailable *UnavailableError
	switch {
	case errors.As(err, &p):
		return p, true
	case errors.Is(err, ErrNotFound):
		return newProblem(http.StatusNotFound, "%v: list what there is one path segment up", err), true
	case errors.Is(err, ErrInvalid):
		return newProblem(http.StatusBadRequest, "%v: correct the request", err), true
	case errors.Is(err, ErrConflict):
		return newProblem(http.StatusConflict, "%v: look at /api/v1/status", err), true
	case errors.As(err, &unavailable):
		return unavailableProblem(err, unavailable.RetryAfter), true
	case errors.Is(err, ErrUnavailable), errors.Is(err, store.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return unavailableProblem(err, 0), true
	case errors.Is(err, context.Canceled):
		return newProblem(statusClientClosed, "the client went away"), true
	}
	return newProblem(http.StatusInternalServerError, "internal error: the log of the node that answered says more; try again or ask another node"), false
}

func unavailableProblem(err error, retryAfter time.Duration) *Problem {
	if retryAfter <= 0 {
		retryAfter = RetryAfterDefault
	}
	p := newProblem(http.StatusServiceUnavailable, "%v: try again in %s, or look at /api/v1/status", err, retryAfter)
	p.retryAfter = retryAfter
	return p
}

// problem is problemOf for handlers: what is ours is logged here, once.
func (s *Server) problem(ctx context.Context, err error) *Problem {
	p, known := problemOf(err)
	if !known {
		s.logger.ErrorContext(ctx, "request failed", "route", infoOf(ctx).route, "err", err)
	}
	return p
}

// fail answers a plain handler's request with the problem for err.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	writeProblem(w, s.problem(r.Context(), err))
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	h := w.Header()
	for k, v := range p.GetHeaders() {
		h[k] = v
	}
	h.Set("Content-Type", ProblemContentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Del("Link")
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(p) // the client is gone if this fails, nobody to tell
}

// humaProblems turns the errors that huma makes by itself (a body that is not
// JSON, a wrong type in it) into problems of ours: one sentence with the place.
func humaProblems(_ huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	parts := make([]string, 0, len(e.Errors)+1)
	for _, d := range e.Errors {
		if d != nil {
			parts = append(parts, strings.Trim(d.Location+": "+d.Message, ": "))
		}
	}
	if len(parts) == 0 {
		parts = append(parts, e.Detail)
	}
	return newProblem(e.Status, "%s: see /openapi.json for what is expected", strings.Join(parts, "; ")), nil
}

// errorSchema documents Problem for every route.
func errorResponse() *huma.Response {
	str := func(doc string) *huma.Schema { return &huma.Schema{Type: huma.TypeString, Description: doc} }
	return &huma.Response{
		Description: "A problem (RFC 9457); detail names the remedy",
		Content: map[string]*huma.MediaType{ProblemContentType: {Schema: &huma.Schema{
			Type: huma.TypeObject,
			Properties: map[string]*huma.Schema{
				"title":  str("text of the status"),
				"status": {Type: huma.TypeInteger},
				"detail": str("what is wrong and what to do"),
			},
			Required: []string{"title", "status", "detail"},
		}}},
	}
}

var errPanicked = errors.New("handler panicked")
