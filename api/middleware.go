package api

import (
	"context"
	"io"
	"net/http"
	"runtime/debug"
	"time"
)

// info travels with a request so that the outermost handler learns what the
// innermost found out.
type info struct {
	route string
}

type infoKey struct{}

// noRoute is the label of requests that match no route: a bounded one.
const noRoute = "none"

func infoOf(ctx context.Context) *info {
	if i, ok := ctx.Value(infoKey{}).(*info); ok {
		return i
	}
	return &info{route: noRoute}
}

// observe is the outermost handler: deadlines that follow progress, metrics, the
// debug log and the last line of defence against a panic.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		defer s.requests.Done()
		s.metrics.open.Inc()
		defer s.metrics.open.Dec()
		begin := time.Now()
		rc := http.NewResponseController(w)
		in := &info{route: noRoute}
		res := &response{ResponseWriter: w, rc: rc, timeout: s.cfg.ProgressTimeout}
		r = r.WithContext(context.WithValue(r.Context(), infoKey{}, in))
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &progressBody{ReadCloser: r.Body, rc: rc, timeout: s.cfg.ProgressTimeout}
		}
		defer func() {
			cause := recover()
			if cause != nil && cause != http.ErrAbortHandler {
				s.logger.Error("handler panicked", "route", in.route, "err", cause, "stack", string(debug.Stack()))
				if res.status == 0 {
					p, _ := problemOf(errPanicked)
					writeProblem(res, p)
					cause = nil
				} else {
					cause = http.ErrAbortHandler // the client must not take half an answer for a whole one
				}
			}
			status := res.status
			if status == 0 {
				status = http.StatusOK
			}
			took := time.Since(begin)
			s.metrics.request(in.route, status, took)
			s.metrics.sent.Add(float64(res.bytes))
			s.logger.Debug("request answered", "method", r.Method, "path", r.URL.Path, "route", in.route, "status", status, "bytes", res.bytes, "dur", took, "remote", r.RemoteAddr)
			if cause != nil {
				panic(cause)
			}
			res.extend() // for what net/http still has to flush
		}()
		next.ServeHTTP(res, r)
	})
}

// response sets the write deadline anew before every write: what makes progress
// may last as long as it likes.
type response struct {
	http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	status  int
	bytes   int64
}

func (w *response) extend() {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.timeout)) // unsupported only under test recorders
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
	}
	w.extend()
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.extend()
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// progressBody does the same for reading. The deadline is taken off at the end:
// net/http watches the connection from then on, and a passing deadline would
// look to it like a client that went away.
type progressBody struct {
	io.ReadCloser
	rc      *http.ResponseController
	timeout time.Duration
}

func (b *progressBody) Read(p []byte) (int, error) {
	_ = b.rc.SetReadDeadline(time.Now().Add(b.timeout)) // unsupported only under test recorders
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// router finds the route and answers for the routes that do not exist, which
// http.ServeMux does in plain text.
func (s *Server) router(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			infoOf(r.Context()).route = pattern
			mux.ServeHTTP(w, r)
			return
		}
		probe := probeWriter{header: http.Header{}}
		h.ServeHTTP(&probe, r)
		if allow := probe.header.Get("Allow"); probe.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", allow)
			writeProblem(w, newProblem(http.StatusMethodNotAllowed, "%s is not possible on %s: use %s", r.Method, r.URL.Path, allow))
			return
		}
		writeProblem(w, newProblem(http.StatusNotFound, "there is no route %s: /openapi.json lists them all", r.URL.Path))
	})
}

// probeWriter learns what http.ServeMux would have answered.
type probeWriter struct {
	header http.Header
	status int
}

func (p *probeWriter) Header() http.Header         { return p.header }
func (p *probeWriter) Write(b []byte) (int, error) { return len(b), nil }
func (p *probeWriter) WriteHeader(status int)      { p.status = status }

// sameOrigin keeps web pages of others from posting through a user's browser;
// clients that are no browsers pass.
func sameOrigin(next http.Handler) http.Handler {
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, newProblem(http.StatusForbidden, "a browser sent this for another site: open the page from the node's own address"))
	}))
	return guard.Handler(next)
}
