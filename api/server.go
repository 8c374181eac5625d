package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"
)

const (
	headerTimeout  = 10 * time.Second // a client that needs longer for its header is not one of ours
	idleTimeout    = 2 * time.Minute  // longer than any scrape or poll interval we know
	headerBytesMax = 64 << 10         // cookies of a proxy fit, 8 x 256 MiB does not
)

// Server answers HTTP for one node.
type Server struct {
	logger  *slog.Logger
	cfg     Config
	backend Backend
	metrics *metrics
	handler http.Handler
	huma    huma.API
	openapi []byte

	inflight *semaphore.Weighted // bytes of messages that wait for their commit
	reads    *semaphore.Weighted // queries that hold a page
	streams  *semaphore.Weighted // event streams
	answers  *answers            // of requests with an Idempotency-Key
	lines    sync.Pool           // *line

	closing   chan struct{} // closed when Serve begins to stop: streams end, /readyz fails
	closeOnce sync.Once
	requests  sync.WaitGroup // handlers that run
}

// New builds a server; it listens nowhere yet. reg may be nil.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config, backend Backend) (*Server, error) {
	if err := errors.Join(cfg.Validate(), backend.Validate()); err != nil {
		return nil, fmt.Errorf("configure api: %w", err)
	}
	if backend.Gatherer == nil {
		backend.Gatherer = prometheus.DefaultGatherer
	}
	s := &Server{logger: logger, cfg: cfg.withDefaults(), backend: backend, metrics: newMetrics(reg), closing: make(chan struct{})}
	s.inflight = semaphore.NewWeighted(s.cfg.InflightBytesMax)
	s.reads = semaphore.NewWeighted(int64(s.cfg.ReadsMax))
	s.streams = semaphore.NewWeighted(int64(s.cfg.StreamsMax))
	s.answers = newAnswers(answersBytesMax)
	s.lines.New = func() any { return newLine() }

	mux := http.NewServeMux()
	if err := s.routes(mux); err != nil {
		return nil, err
	}
	var inner http.Handler = s.router(mux)
	if s.cfg.Middleware != nil {
		inner = s.cfg.Middleware(inner)
	}
	s.handler = s.observe(sameOrigin(inner))
	return s, nil
}

// Handler is the whole server without its listener, for tests and for mounting.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on ln until ctx ends, then stops gracefully: no new connection,
// /readyz fails, streams end, other requests have Config.ShutdownTimeout to
// finish before they are cut. It closes ln and returns when no handler runs any
// more; nil after a stop through ctx, with or without cut requests. It may be
// called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    headerBytesMax,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
		// ReadTimeout and WriteTimeout would cut long uploads and streams that do
		// make progress; observe sets a deadline before every read and write.
	}
	stopped := make(chan struct{})
	failed := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ctx.Done():
		case <-failed:
		}
		s.stop(srv)
	}()
	err := srv.Serve(netutil.LimitListener(ln, s.cfg.ConnectionsMax))
	if !errors.Is(err, http.ErrServerClosed) {
		close(failed)
	}
	<-stopped
	s.requests.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve http on %s: %w", ln.Addr(), err)
}

func (s *Server) stop(srv *http.Server) {
	s.closeOnce.Do(func() { close(s.closing) })
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ShutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		s.logger.Warn("requests cut at shutdown", "err", err)
		_ = srv.Close() // cancels the contexts of what still runs
	}
}

func (s *Server) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}
