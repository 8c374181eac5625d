package postgres

import (
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Config of a DB. The zero value of every field but URL and Cluster is its
// default.
type Config struct {
	// URL is a libpq connection string, postgres://user:password@host/database.
	// Several hosts with target_session_attrs=read-write follow a fail-over, and
	// search_path=name puts the tables into a schema of their own.
	URL string

	// Cluster returns the cluster id, which is part of every watermark's key; ""
	// while it is not known yet, and then nothing is written or read. It is
	// called from any goroutine.
	Cluster func() string

	// Namespace of every batch; default 0. Batches of other namespaces are
	// refused: a namespace needs a schema (search_path) of its own.
	Namespace uint32

	// Conns bounds the connections to the server; default 4. Flushes take all of
	// them but one, queries at most half of them.
	Conns int

	// ConnectTimeout bounds one attempt to connect; default 5 s, or what the URL
	// says in connect_timeout.
	ConnectTimeout time.Duration

	// StatementTimeout bounds each statement on the server, the COPY of a whole
	// batch among them; default 60 s. One that is too short for a batch makes
	// every attempt at it fail.
	StatementTimeout time.Duration

	// LockTimeout bounds each wait for a lock on the server; default 10 s.
	LockTimeout time.Duration

	// IdleTimeout ends a transaction of ours that sends nothing for so long
	// (idle_in_transaction_session_timeout); default 10 s. It is how long a
	// paused leader can keep its successor from moving the watermark.
	IdleTimeout time.Duration

	// NetworkTimeout is how long sent bytes may stay unacknowledged before the
	// connection counts as dead, on both sides (tcp_user_timeout); default 10 s.
	NetworkTimeout time.Duration

	// Chunk is how much time a chunk of the hypertable, or a partition of the
	// plain table, covers; whole days, default 7 days. It counts for chunks and
	// partitions that are made from now on.
	Chunk time.Duration

	// Retention is how long readings are kept, by their time; 0 keeps them for
	// ever. They go by whole chunks or partitions, so up to Chunk later;
	// TimescaleDB keeps them for 6 h at least.
	Retention time.Duration

	// AggregateRetention is the same for the continuous aggregates; 0 keeps them
	// for ever. TimescaleDB only: without it they are views.
	AggregateRetention time.Duration

	// CompressAfter is how old a chunk is when TimescaleDB turns it into its
	// columnstore; 0 is never.
	CompressAfter time.Duration

	// RefreshEvery is how often the continuous aggregates take in what is new or
	// late; default 1 min. What they lack meanwhile is computed when asked.
	RefreshEvery time.Duration

	// ManualMigrations leaves the schema to whoever calls Migrate: the DB waits,
	// unhealthy, until the schema is there. For nodes whose role owns nothing.
	ManualMigrations bool
}

const (
	day = 24 * time.Hour

	connsDefault            = 4
	connsLimit              = 64 // of the server's usual 100, which all nodes share
	connectTimeoutDefault   = 5 * time.Second
	statementTimeoutDefault = time.Minute
	lockTimeoutDefault      = 10 * time.Second
	idleTimeoutDefault      = 10 * time.Second
	networkTimeoutDefault   = 10 * time.Second
	chunkDefault            = 7 * day // TimescaleDB's own default
	chunkLimit              = 366 * day
	refreshDefault          = time.Minute
	policyMin               = time.Hour // of retention and compression
)

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	if c.Conns == 0 {
		c.Conns = connsDefault
	}
	set(&c.StatementTimeout, statementTimeoutDefault)
	set(&c.LockTimeout, lockTimeoutDefault)
	set(&c.IdleTimeout, idleTimeoutDefault)
	set(&c.NetworkTimeout, networkTimeoutDefault)
	set(&c.Chunk, chunkDefault)
	set(&c.RefreshEvery, refreshDefault)
	return c
}

// Validate returns every problem of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.URL == "" {
		errs = append(errs, errors.New("database URL is empty: set postgres://user:password@host/database"))
	} else if _, err := pgx.ParseConfig(c.URL); err != nil {
		// The error of pgx leaves the password out.
		errs = append(errs, fmt.Errorf("database URL: %w: write it as postgres://user:password@host/database", err))
	}
	if c.Cluster == nil {
		errs = append(errs, errors.New("cluster id is missing"))
	}
	if c.Conns < 0 || c.Conns > connsLimit {
		errs = append(errs, fmt.Errorf("connections %d: must be between 1 and %d, or 0 for the default", c.Conns, connsLimit))
	}
	for _, t := range []struct {
		name string
		d    time.Duration
	}{
		{"connect timeout", c.ConnectTimeout}, {"statement timeout", c.StatementTimeout}, {"lock timeout", c.LockTimeout},
		{"idle timeout", c.IdleTimeout}, {"network timeout", c.NetworkTimeout},
	} {
		if t.d < 0 || t.d > 0 && t.d < time.Millisecond || t.d > day {
			errs = append(errs, fmt.Errorf("%s %v: must be between 1ms and 24h, or 0 for the default", t.name, t.d))
		}
	}
	if c.Chunk < 0 || c.Chunk%day != 0 || c.Chunk > chunkLimit {
		errs = append(errs, fmt.Errorf("chunk %v: must be whole days (24h, 168h), at most %v, or 0 for the default", c.Chunk, chunkLimit))
	}
	for _, p := range []struct {
		name string
		d    time.Duration
	}{{"retention", c.Retention}, {"aggregate retention", c.AggregateRetention}, {"compress after", c.CompressAfter}} {
		if p.d != 0 && p.d < policyMin || p.d%time.Second != 0 {
			errs = append(errs, fmt.Errorf("%s %v: must be whole seconds and at least %v, or 0 for never", p.name, p.d, policyMin))
		}
	}
	if c.RefreshEvery != 0 && (c.RefreshEvery < time.Second || c.RefreshEvery > day) {
		errs = append(errs, fmt.Errorf("refresh %v: must be between 1s and 24h, or 0 for the default", c.RefreshEvery))
	}
	if c.Retention > 0 && c.CompressAfter >= c.Retention {
		errs = append(errs, fmt.Errorf("compress after %v: readings are dropped after %v already", c.CompressAfter, c.Retention))
	}
	return errors.Join(errs...)
}
