package postgres

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// conn is one connection and when it was last put back.
type conn struct {
	*pgx.Conn
	used time.Time
}

// grace is what the client waits longer than the server's own timeout before it
// gives a statement up: the server's answer says more than ours.
const grace = 5 * time.Second

// bounded limits one statement: a server that is stopped but not gone answers
// nothing and resets nothing.
func (db *DB) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, db.cfg.StatementTimeout+grace)
}

// parse turns the configuration into that of pgx.
func (c Config) parse() (*pgx.ConnConfig, error) {
	cc, err := pgx.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", err)
	}
	switch {
	case c.ConnectTimeout > 0:
		cc.ConnectTimeout = c.ConnectTimeout
	case cc.ConnectTimeout == 0:
		cc.ConnectTimeout = connectTimeoutDefault
	}
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = "sluice"
	}
	return cc, nil
}

// sockets are the sockets to the server. pgx takes up to 15 s to ask a server
// that does not answer to cancel a statement; Close does not wait for that.
type sockets struct {
	dialer net.Dialer
	ctx    context.Context // the DB's

	mu   sync.Mutex
	open map[*socket]bool
}

type socket struct {
	net.Conn
	owner *sockets
}

func newSockets(ctx context.Context, c Config) *sockets {
	return &sockets{ctx: ctx, open: map[*socket]bool{}, dialer: net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: c.NetworkTimeout, Interval: c.NetworkTimeout / 3, Count: 3},
		Control:         userTimeout(c.NetworkTimeout),
	}}
}

func (s *sockets) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	c, err := s.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	opened := &socket{c, s}
	s.mu.Lock()
	s.open[opened] = true
	s.mu.Unlock()
	return opened, nil
}

// Close implements net.Conn.
func (c *socket) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}

// cut closes every socket. What is dialled after the DB's context has ended
// fails by itself.
func (s *sockets) cut() {
	s.mu.Lock()
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, c := range open {
		_ = c.Close() // nobody is left to use it
	}
}

// dial makes a connection and gives its session our limits.
func (db *DB) dial(ctx context.Context) (*conn, error) {
	c, err := pgx.ConnectConfig(ctx, db.conn)
	if err != nil {
		return nil, err
	}
	db.m.connects.Inc()
	db.m.connections.Inc()
	opened := &conn{Conn: c}
	if err := db.limits(ctx, opened); err != nil {
		db.discard(opened)
		return nil, err
	}
	return opened, nil
}

// limits sets the session's timeouts with SET rather than with parameters of
// the start packet, which poolers refuse. A server that does not know one of
// them (tcp_user_timeout came with version 12) keeps its own.
func (db *DB) limits(ctx context.Context, c *conn) error {
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	ms := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	_, err := c.Exec(ctx, `select set_config(name, value, false)
		from unnest($1::text[], $2::text[]) as want(name, value)
		where exists (select from pg_settings s where s.name = want.name)
		and (want.name <> 'synchronous_commit' or current_setting('synchronous_commit') = 'off')`,
		[]string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "tcp_user_timeout",
			// A commit that a crash may undo would come after the log's records are gone.
			"synchronous_commit"},
		[]string{ms(db.cfg.StatementTimeout), ms(db.cfg.LockTimeout), ms(db.cfg.IdleTimeout), ms(db.cfg.NetworkTimeout), "on"})
	if err != nil {
		return fmt.Errorf("set session limits: %w", err)
	}
	return nil
}

// discard closes a connection and waits until nothing of it is left.
func (db *DB) discard(c *conn) {
	db.m.connections.Dec()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.Close(ctx) // it is gone either way
	db.closes.Go(func() { <-c.PgConn().CleanupDone() })
}

// acquire waits for a turn among the calls of a kind and hands out a connection,
// which the caller gives back with release.
func (db *DB) acquire(ctx context.Context, kind chan struct{}) (*conn, error) {
	select {
	case kind <- struct{}{}:
	case <-ctx.Done():
		return nil, db.stopped(ctx)
	case <-db.ctx.Done():
		return nil, db.stopped(ctx)
	}
	c, err := db.acquireHeld(ctx)
	if err != nil {
		<-kind
	}
	return c, err
}

// acquireHeld is acquire for who has a turn already.
func (db *DB) acquireHeld(ctx context.Context) (*conn, error) {
	select {
	case db.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, db.stopped(ctx)
	case <-db.ctx.Done():
		return nil, db.stopped(ctx)
	}
	c, err := db.idleOrNew(ctx)
	if err != nil {
		<-db.slots
	}
	return c, err
}

func (db *DB) stopped(ctx context.Context) error {
	if db.ctx.Err() != nil {
		return ErrClosed
	}
	return ctx.Err()
}

// idleMax is how long an idle connection is trusted without asking it.
const idleMax = time.Second

func (db *DB) idleOrNew(ctx context.Context) (*conn, error) {
	if err := db.awaitReady(ctx); err != nil {
		return nil, err
	}
	for {
		db.mu.Lock()
		n := len(db.idle) - 1
		if n < 0 {
			db.mu.Unlock()
			break
		}
		c := db.idle[n]
		db.idle = db.idle[:n]
		db.mu.Unlock()
		if time.Since(c.used) < idleMax {
			return c, nil
		}
		if err := db.ping(ctx, c); err == nil {
			return c, nil
		} else if ctx.Err() != nil {
			db.discard(c)
			return nil, err
		}
		db.discard(c)
	}
	c, err := db.dial(ctx)
	if err == nil {
		return c, nil
	}
	if ctx.Err() != nil {
		return nil, err
	}
	return nil, db.lost(err)
}

func (db *DB) ping(ctx context.Context, c *conn) error {
	ctx, cancel := context.WithTimeout(ctx, db.conn.ConnectTimeout)
	defer cancel()
	return c.Ping(ctx)
}

// release takes a connection and the turn back.
func (db *DB) release(c *conn, kind chan struct{}, err error) {
	defer func() { <-kind }()
	db.releaseHeld(c, err)
}

// releaseHeld takes a connection back. One that broke takes the idle ones with
// it: whatever happened to the server happened to them too.
func (db *DB) releaseHeld(c *conn, err error) {
	defer func() { <-db.slots }()
	if moved(err) {
		db.discard(c)
		_ = db.lost(err)
		return
	}
	if !c.IsClosed() && c.PgConn().TxStatus() == 'I' {
		c.used = time.Now()
		db.mu.Lock()
		open := !db.closed
		if open {
			db.idle = append(db.idle, c)
		}
		db.mu.Unlock()
		if open {
			return
		}
	}
	db.discard(c)
	db.dropIdle()
}

func (db *DB) dropIdle() {
	db.mu.Lock()
	idle := db.idle
	db.idle = nil
	db.mu.Unlock()
	for _, c := range idle {
		db.discard(c)
	}
}
