package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/store"
)

// DB is a PostgreSQL or TimescaleDB database as the store of all shards.
type DB struct {
	logger *slog.Logger
	cfg    Config
	conn   *pgx.ConnConfig
	m      *metrics

	sockets *sockets

	ctx    context.Context // ends with Close; every call ends with it
	cancel context.CancelFunc
	wg     sync.WaitGroup // the keeper
	closes sync.WaitGroup // connections that are still closing

	slots  chan struct{} // connections in use
	writes chan struct{} // of them, by flushes
	reads  chan struct{} // of them, by queries

	mu       sync.Mutex // a leaf: never held across I/O
	closed   bool
	ready    bool
	cause    error         // why it is not ready; nil before the first attempt ended
	writeErr error         // of the last write
	changed  chan struct{} // closed when ready or cause changes
	wake     chan struct{} // wakes the keeper
	idle     []*conn
	layout   layout
	said     layout // what announce has told
	// aggregates is true while telemetry_1m and telemetry_1h are materialised.
	aggregates bool

	partitions partitions
	combiner   combiner
	maintained time.Time // the keeper's: when it last looked after the partitions
}

// Open returns a DB at once: it connects and migrates the schema behind the
// caller's back, again and again until that succeeds. Until then calls fail with
// store.ErrUnavailable and Health says why. Only a configuration that can never
// work makes Open fail.
func Open(logger *slog.Logger, reg prometheus.Registerer, cfg Config) (*DB, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	cfg = cfg.withDefaults()
	cc, err := cfg.parse()
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	db := &DB{
		logger: logger, cfg: cfg, conn: cc, m: m,
		slots:   make(chan struct{}, cfg.Conns),
		writes:  make(chan struct{}, max(1, cfg.Conns-1)),
		reads:   make(chan struct{}, max(1, cfg.Conns/2)),
		changed: make(chan struct{}),
		wake:    make(chan struct{}, 1),
	}
	db.begin(context.Background())
	db.wg.Go(db.keep)
	return db, nil
}

// begin gives the DB the context that everything of it ends with.
func (db *DB) begin(ctx context.Context) {
	db.ctx, db.cancel = context.WithCancel(ctx)
	db.sockets = newSockets(db.ctx, db.cfg)
	db.conn.DialFunc = db.sockets.dial
}

// Close ends what is under way, waits for it and closes the connections.
func (db *DB) Close() error {
	db.mu.Lock()
	again := db.closed
	db.closed = true
	db.mu.Unlock()
	if again {
		return nil
	}
	db.cancel()
	db.wg.Wait()
	for range cap(db.slots) { // whoever has one gives it back now
		db.slots <- struct{}{}
	}
	db.dropIdle()
	db.sockets.cut()
	db.closes.Wait()
	db.m.up.Set(0)
	return nil
}

// Health returns nil while rows go in, else what is in the way: the reason why
// there is no connection, or the error of the last Write.
func (db *DB) Health() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	switch {
	case db.closed:
		return ErrClosed
	case db.ready:
		return db.writeErr
	case db.cause == nil:
		return fmt.Errorf("%w: not connected yet", store.ErrUnavailable)
	}
	return db.cause
}

// Hypertable reports whether readings go into a TimescaleDB hypertable; false
// also while that is not known.
func (db *DB) Hypertable() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.layout == layoutHypertable
}

// join makes a call's context end when the DB is closed.
func (db *DB) join(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(db.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// cluster returns the cluster id, or an error while there is none.
func (db *DB) cluster() (string, error) {
	if id := db.cfg.Cluster(); id != "" {
		return id, nil
	}
	return "", fmt.Errorf("%w: the cluster id is not known yet", store.ErrUnavailable)
}

const (
	// retryMin doubles up to retryMax between attempts to connect: a server that
	// restarts is found soon, one that is down is not hammered by every node.
	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
	// pingInterval is how often an idle database is asked whether it is there.
	pingInterval = 5 * time.Second
)

// keep makes the DB ready whenever it is not.
func (db *DB) keep() {
	pause := time.Duration(0)
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	for {
		db.mu.Lock()
		ready := db.ready
		db.mu.Unlock()
		if ready {
			pause = 0
			select {
			case <-db.ctx.Done():
				return
			case <-db.wake:
			case <-tick.C:
				db.probe()
				db.maintain(time.Now())
			}
			continue
		}
		select {
		case <-db.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(max(2*pause, retryMin), retryMax)
		if err := db.prepare(db.ctx); err != nil && db.ctx.Err() == nil {
			db.m.connectErrors.Inc()
			_ = db.unready(err) // it has logged it; waiting callers get it
		}
	}
}

// probe finds out whether an idle database is still there.
func (db *DB) probe() {
	ctx, cancel := context.WithTimeout(db.ctx, pingInterval)
	defer cancel()
	c, err := db.acquire(ctx, db.reads)
	if err != nil {
		return // idleOrNew took note, or every connection is at work
	}
	db.release(c, db.reads, nil)
}

// awaitReady returns when the DB is ready, or with the reason why it is not.
func (db *DB) awaitReady(ctx context.Context) error {
	for {
		db.mu.Lock()
		ready, cause, changed := db.ready, db.cause, db.changed
		db.mu.Unlock()
		switch {
		case ready:
			return nil
		case cause != nil:
			return cause
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return db.stopped(ctx)
		}
	}
}

// lost notes that there is no connection to be had and returns the error that
// says so.
func (db *DB) lost(err error) error {
	if db.ctx.Err() != nil {
		return ErrClosed
	}
	err = db.unready(err)
	db.dropIdle()
	select {
	case db.wake <- struct{}{}:
	default:
	}
	return err
}

// unready records why the DB is not ready; it logs when that is news.
func (db *DB) unready(err error) error {
	if err = explain(err); !isUnavailable(err) {
		err = fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	db.mu.Lock()
	news := db.ready || db.cause == nil || db.cause.Error() != err.Error()
	db.ready, db.cause = false, err
	close(db.changed)
	db.changed = make(chan struct{})
	db.mu.Unlock()
	db.m.up.Set(0)
	if news {
		db.logger.Warn("database is not available, the log keeps the rows", "err", err)
	}
	return err
}

func (db *DB) nowReady(l layout) {
	db.mu.Lock()
	db.ready, db.cause, db.layout, db.writeErr = true, nil, l, nil
	close(db.changed)
	db.changed = make(chan struct{})
	db.mu.Unlock()
	db.m.up.Set(1)
}

// noteWrite remembers how the last write went, for Health.
func (db *DB) noteWrite(err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.writeErr = err
}
