package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// attemptsMax is how often a transaction is tried that the server undid for the
// sake of another one. Only a predecessor that does not know yet that it leads
// no more can be that other one, and it soon ends.
const attemptsMax = 4

// Write implements shard.SharedStore: one transaction stores rows, devices and
// anomalies and moves the watermark from b.From to b.To, or does nothing. It
// fails with a *store.WatermarkError when the watermark is elsewhere or a later
// term has written. After any other error the outcome is unknown until Watermark
// is read. b is only read, but for a moment longer than Write takes when that
// fails.
func (db *DB) Write(ctx context.Context, b *telemetry.Batch) error {
	err := db.write(ctx, b)
	var w *store.WatermarkError
	switch {
	case err == nil:
		db.noteWrite(nil)
		return nil
	case errors.As(err, &w):
		db.m.conflicts.Inc()
		return err // how a deposed leader finds out: not an illness of the database
	}
	err = fmt.Errorf("write shard %d up to %d: %w", b.Shard, b.To, explain(err))
	db.m.writeErrors.Inc()
	if ctx.Err() == nil && db.ctx.Err() == nil {
		db.noteWrite(err)
	}
	return err
}

func (db *DB) write(ctx context.Context, b *telemetry.Batch) error {
	if b.Namespace != db.cfg.Namespace {
		return fmt.Errorf("batch of namespace %d, but the database is that of namespace %d", b.Namespace, db.cfg.Namespace)
	}
	if b.To <= b.From {
		return fmt.Errorf("batch ends at %d but begins at %d", b.To, b.From)
	}
	cluster, err := db.cluster()
	if err != nil {
		return err
	}
	ctx, cancel := db.join(ctx)
	defer cancel()
	start, careful := time.Now(), false
	for attempt := 1; ; attempt++ {
		w := &writer{db: db, cluster: cluster, batch: b, careful: careful}
		if err = db.attempt(ctx, w); err == nil {
			db.committed(w, time.Since(start))
			return nil
		}
		switch {
		case refusal(err) != nil && !careful:
			careful = true
		case retryable(err) && attempt < attemptsMax:
			if err := pause(ctx, attempt); err != nil {
				return err
			}
		default:
			return err
		}
		db.m.writeRetries.Inc()
	}
}

// pause waits 5 to 10 ms after the first attempt, twice as long after each other.
func pause(ctx context.Context, attempt int) error {
	d := 5 * time.Millisecond << (attempt - 1)
	select {
	case <-time.After(d + rand.N(d)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (db *DB) committed(w *writer, took time.Duration) {
	db.m.writes.Inc()
	db.m.writeSeconds.Observe(took.Seconds())
	refused := 0
	for i := range w.letters {
		db.m.deadLetters.WithLabelValues(w.letters[i].kind).Inc()
		if w.letters[i].kind == kindReading {
			refused++
		}
	}
	db.m.writeRows.Add(float64(len(w.batch.Rows) - refused))
	if len(w.letters) > 0 {
		db.logger.Warn("the database refused rows, they are in dead_letters", "shard", w.batch.Shard, "rows", len(w.letters),
			"from", w.batch.From, "to", w.batch.To, "err", w.letters[0].reason)
	}
}

func (db *DB) attempt(ctx context.Context, w *writer) error {
	c, err := db.acquire(ctx, db.writes)
	if err != nil {
		return err
	}
	w.conn = c
	db.mu.Lock()
	partitioned := db.layout == layoutPartitioned
	db.mu.Unlock()
	if partitioned {
		err = db.ensurePartitions(ctx, c, w.batch)
	}
	if err == nil {
		err = w.transaction(ctx)
	}
	db.release(c, db.writes, err)
	return err
}

// writer is one attempt to write a batch.
type writer struct {
	db      *DB
	conn    *conn
	cluster string
	batch   *telemetry.Batch
	careful bool // find the rows that the database refuses
	letters []letter
}

// exec runs one statement.
func (w *writer) exec(ctx context.Context, sql string, args ...any) (affected int64, err error) {
	ctx, cancel := w.db.bounded(ctx)
	defer cancel()
	tag, err := w.conn.Exec(ctx, sql, args...)
	return tag.RowsAffected(), err
}

// transaction does it all. The watermark comes last: its row is locked for no
// longer than a commit takes.
func (w *writer) transaction(ctx context.Context) error {
	if _, err := w.exec(ctx, "begin"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := w.fill(ctx)
	if err == nil {
		err = w.move(ctx)
	}
	if err == nil {
		return w.commit(ctx)
	}
	if !w.conn.IsClosed() {
		if _, e := w.exec(ctx, "rollback"); e != nil {
			err = errors.Join(err, fmt.Errorf("roll back: %w", e))
		}
	}
	return err
}

func (w *writer) fill(ctx context.Context) error {
	// Not needed for correctness, but it spares a repeated or deposed batch the
	// way to the server.
	if err := w.expect(ctx); err != nil {
		return err
	}
	if w.careful {
		if _, err := w.exec(ctx, "set constraints all immediate"); err != nil {
			return fmt.Errorf("set constraints: %w", err)
		}
	}
	b := w.batch
	for _, part := range []struct {
		kind   string
		n, max int
		put    func(ctx context.Context, lo, hi int) error
		letter func(i int) letter
	}{
		{kindReading, len(b.Rows), max(1, len(b.Rows)), w.copyRows, w.readingLetter},
		{kindDevice, len(b.Updates), upsertMax, w.upsertDevices, w.deviceLetter},
		{kindAnomaly, len(b.Anomalies), upsertMax, w.upsertAnomalies, w.anomalyLetter},
	} {
		var err error
		if w.careful {
			err = w.sift(ctx, part.n, part.put, part.letter)
		} else {
			for lo := 0; lo < part.n && err == nil; lo += part.max {
				err = part.put(ctx, lo, min(lo+part.max, part.n))
			}
		}
		if err != nil {
			return fmt.Errorf("store %ss: %w", part.kind, err)
		}
	}
	return w.keepLetters(ctx)
}

func (w *writer) copyRows(ctx context.Context, lo, hi int) error {
	ctx, cancel := w.db.bounded(ctx)
	defer cancel()
	tag, err := w.conn.PgConn().CopyFrom(ctx, newRowReader(w.batch, lo, hi), copyTelemetry)
	if err != nil {
		return err
	}
	if n := tag.RowsAffected(); n != int64(hi-lo) {
		// A trigger that drops rows would otherwise go unnoticed for ever.
		w.db.logger.Warn("the database took fewer rows than it was given: a trigger drops them", "shard", w.batch.Shard, "given", hi-lo, "taken", n)
	}
	return nil
}

// watermark reads index and term of the batch's shard.
func (w *writer) watermark(ctx context.Context) (index, term uint64, err error) {
	ctx, cancel := w.db.bounded(ctx)
	defer cancel()
	return w.db.readWatermark(ctx, w.conn, w.cluster, w.batch.Shard)
}

func (w *writer) expect(ctx context.Context) error {
	index, term, err := w.watermark(ctx)
	if err != nil {
		return err
	}
	if index != w.batch.From || term > w.batch.Term {
		return w.mismatch(index, term)
	}
	return nil
}

func (w *writer) mismatch(index, term uint64) error {
	return &store.WatermarkError{Shard: w.batch.Shard, Want: w.batch.From, Have: index, WantTerm: w.batch.Term, HaveTerm: term}
}

const (
	insertWatermark = `insert into flush_watermarks as w (cluster, namespace, shard, last_index, term)
		values ($1, $2, $3, $4, $5)
		on conflict (cluster, namespace, shard) do update
		set last_index = excluded.last_index, term = excluded.term, updated = now()
		where w.last_index = 0 and w.term <= excluded.term`
	moveWatermark = `update flush_watermarks set last_index = $4, term = $5, updated = now()
		where cluster = $1 and namespace = $2 and shard = $3 and last_index = $6 and term <= $5`
)

// move is the compare-and-set. It waits for another transaction that holds the
// row and then sees what that one has done.
func (w *writer) move(ctx context.Context) error {
	b := w.batch
	args := []any{w.cluster, int64(b.Namespace), int64(b.Shard), int64(b.To), int64(b.Term)}
	sql := insertWatermark
	if b.From > 0 {
		sql, args = moveWatermark, append(args, int64(b.From))
	}
	n, err := w.exec(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("move watermark: %w", err)
	}
	if n == 1 {
		return nil
	}
	index, term, err := w.watermark(ctx)
	if err != nil {
		return err
	}
	return w.mismatch(index, term)
}

func (w *writer) commit(ctx context.Context) error {
	ctx, cancel := w.db.bounded(ctx)
	defer cancel()
	tag, err := w.conn.Exec(ctx, "commit")
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if tag.String() != "COMMIT" {
		return fmt.Errorf("commit: the server answered %s", tag)
	}
	return nil
}

// Watermark implements shard.SharedStore; 0 is a shard that was never written.
func (db *DB) Watermark(ctx context.Context, shard telemetry.ShardID) (uint64, error) {
	cluster, err := db.cluster()
	if err != nil {
		return 0, err
	}
	ctx, cancel := db.join(ctx)
	defer cancel()
	c, err := db.acquire(ctx, db.reads)
	if err != nil {
		return 0, fmt.Errorf("read watermark of shard %d: %w", shard, explain(err))
	}
	bounded, done := db.bounded(ctx)
	defer done()
	index, _, err := db.readWatermark(bounded, c, cluster, shard)
	db.release(c, db.reads, err)
	if err != nil {
		return 0, fmt.Errorf("read watermark of shard %d: %w", shard, explain(err))
	}
	return index, nil
}

func (db *DB) readWatermark(ctx context.Context, c *conn, cluster string, shard telemetry.ShardID) (index, term uint64, err error) {
	var i, t int64
	err = c.QueryRow(ctx, "select last_index, term from flush_watermarks where cluster = $1 and namespace = $2 and shard = $3",
		cluster, int64(db.cfg.Namespace), int64(shard)).Scan(&i, &t)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, 0, fmt.Errorf("read watermark: %w", err)
	}
	return uint64(i), uint64(t), nil
}
