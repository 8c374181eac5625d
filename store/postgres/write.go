package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/sluice-iot/sluice/internal/mutate"
	"github.com/sluice-iot/sluice/telemetry"
)

// attemptsMax is how often a transaction is tried that the server undid for the
// sake of another one. Only a predecessor that does not know yet that it leads
// no more can be that other one, and it soon ends.
const attemptsMax = 4

// writeGroup commits a group of batches in as few transactions as it takes and
// answers every one of them.
func (db *DB) writeGroup(ctx context.Context, group []*request) {
	cluster, err := db.cluster()
	if err != nil {
		answerAll(group, err)
		return
	}
	slices.SortFunc(group, func(a, b *request) int { return int(a.batch.Shard) - int(b.batch.Shard) })
	start, careful := time.Now(), false
	for attempt := 1; len(group) > 0; attempt++ {
		w := newWriter(db, cluster, group, careful)
		err := db.attempt(ctx, w)
		group = w.requests // without those whose watermark is elsewhere
		switch {
		case err == nil:
			db.committed(w, time.Since(start))
			answerAll(group, nil)
			return
		case errors.Is(err, errMoved):
			attempt-- // somebody is out: that cannot go on for ever
		case (refusal(err) != nil || sqlState(err) == codeStatement) && len(group) > 1:
			// A COPY that takes too long would do so again, whoever asks for it.
			for i := range group {
				db.writeGroup(ctx, group[i:i+1:i+1])
			}
			return
		case refusal(err) != nil && !careful:
			careful = true
		case retryable(err) && attempt < attemptsMax:
			if e := pause(ctx, attempt); e != nil {
				answerAll(group, errors.Join(err, e))
				return
			}
		default:
			answerAll(group, err)
			return
		}
		db.m.writeRetries.Inc()
	}
}

func answerAll(group []*request, err error) {
	for _, r := range group {
		r.done <- err
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
	db.m.writeBatches.Observe(float64(len(w.requests)))
	db.m.writeSeconds.Observe(took.Seconds())
	refused := 0
	for i := range w.letters {
		db.m.deadLetters.WithLabelValues(w.letters[i].kind).Inc()
		if w.letters[i].kind == kindReading {
			refused++
		}
	}
	db.m.writeRows.Add(float64(w.rows - refused))
	if w.rows > 0 {
		db.m.copyRows.Observe(float64(w.rows))
	}
	if len(w.letters) > 0 {
		b := w.letters[0].batch
		db.logger.Warn("the database refused rows, or has lost some: they are in dead_letters", "shard", b.Shard, "rows", len(w.letters),
			"from", b.From, "to", b.To, "err", w.letters[0].reason)
	}
}

func (db *DB) attempt(ctx context.Context, w *writer) error {
	c, err := db.acquireHeld(ctx)
	if err != nil {
		return err
	}
	w.conn = c
	db.mu.Lock()
	partitioned := db.layout == layoutPartitioned
	db.mu.Unlock()
	for i := 0; partitioned && err == nil && i < len(w.requests); i++ {
		err = db.ensurePartitions(ctx, c, w.requests[i].batch)
	}
	if err == nil {
		err = w.transaction(ctx)
	}
	db.releaseHeld(c, err)
	return err
}

// writer is one attempt to write a group of batches.
type writer struct {
	db        *DB
	conn      *conn
	cluster   string
	requests  []*request // in the order of their shards
	updates   []telemetry.DeviceUpdate
	anomalies []telemetry.Anomaly
	rows      int
	careful   bool // find the rows that the database refuses: of one batch only
	letters   []letter
	messages  []refusedMessage // that letters refer to
}

func newWriter(db *DB, cluster string, group []*request, careful bool) *writer {
	return &writer{db: db, cluster: cluster, requests: slices.Clone(group), careful: careful}
}

// gather lists what the batches that are left bring.
func (w *writer) gather() {
	w.updates, w.anomalies, w.rows = nil, nil, 0
	if len(w.requests) == 1 {
		b := w.requests[0].batch
		w.updates, w.anomalies, w.rows = b.Updates, b.Anomalies, len(b.Rows)
		return
	}
	seen := map[string]bool{} // a statement must not name a device twice
	for _, r := range w.requests {
		for _, u := range r.batch.Updates {
			if !seen[u.Device] {
				seen[u.Device] = true
				w.updates = append(w.updates, u)
			}
		}
		w.anomalies = append(w.anomalies, r.batch.Anomalies...)
		w.rows += len(r.batch.Rows)
	}
}

// exec runs one statement.
func (w *writer) exec(ctx context.Context, sql string, args ...any) (affected int64, err error) {
	ctx, cancel := w.db.bounded(ctx)
	defer cancel()
	tag, err := w.conn.Exec(ctx, sql, args...)
	return tag.RowsAffected(), err
}

// errMoved ends an attempt because a watermark was elsewhere: the request is
// answered, and the others try again without it.
var errMoved = errors.New("a watermark has moved")

// transaction does it all. The watermarks come last: their rows are locked for no
// longer than a commit takes.
func (w *writer) transaction(ctx context.Context) error {
	if _, err := w.exec(ctx, "begin"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err := w.fill(ctx)
	if mutate.On(mutate.FlushWithoutWatermark) && err == nil {
		if err = w.commit(ctx); err == nil {
			_, err = w.exec(ctx, "begin")
		}
	}
	if err == nil && len(w.requests) > 0 {
		err = w.move(ctx)
	}
	if err == nil && len(w.requests) > 0 {
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
	// Not needed for correctness, but it spares repeated and deposed batches the
	// way to the server.
	if err := w.expect(ctx); err != nil || len(w.requests) == 0 {
		return err
	}
	w.gather()
	if w.careful {
		if _, err := w.exec(ctx, "set constraints all immediate"); err != nil {
			return fmt.Errorf("set constraints: %w", err)
		}
	}
	for _, part := range []struct {
		kind   string
		n, max int
		put    func(ctx context.Context, lo, hi int) error
		letter func(i int) letter
	}{
		{kindReading, w.rows, max(1, w.rows), w.copyRows, w.readingLetter},
		{kindDevice, len(w.updates), upsertMax, w.upsertDevices, w.deviceLetter},
		{kindAnomaly, len(w.anomalies), upsertMax, w.upsertAnomalies, w.anomalyLetter},
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
	if err := w.findMessages(); err != nil {
		return err
	}
	for _, r := range w.requests {
		if r.batch.Lost {
			w.letters = append(w.letters, lostLetter(r.batch))
		}
	}
	return w.keepLetters(ctx)
}

// copyRows copies rows of all batches; a part of them only of a single one.
func (w *writer) copyRows(ctx context.Context, lo, hi int) error {
	ctx, cancel := w.db.bounded(ctx)
	defer cancel()
	r := &rowReader{}
	for _, q := range w.requests {
		r.parts = append(r.parts, rowRange{q.batch, 0, len(q.batch.Rows)})
	}
	if len(r.parts) == 1 {
		r.parts[0].next, r.parts[0].end = lo, hi
	}
	tag, err := w.conn.PgConn().CopyFrom(ctx, r, copyTelemetry)
	if err != nil {
		return err
	}
	if n := tag.RowsAffected(); n != int64(hi-lo) {
		// A trigger that drops rows would otherwise go unnoticed for ever.
		w.db.logger.Warn("the database took fewer rows than it was given: a trigger drops them", "shard", w.requests[0].batch.Shard, "given", hi-lo, "taken", n)
	}
	return nil
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
