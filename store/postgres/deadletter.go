package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluice-iot/sluice/telemetry"
)

// ErrNoLetter answers for a dead letter that does not exist.
var ErrNoLetter = errors.New("no such dead letter")

// DeadLetter is one row that the database refused, or a range that was lost.
type DeadLetter struct {
	ID       int64
	Created  time.Time
	Shard    telemetry.ShardID
	From, To uint64 // log range of the batch
	Kind     string // reading, device, anomaly or lost
	Device   string
	SQLState string
	Reason   string
	Content  json.RawMessage // see FORMAT.md

	message string // id of the message that it came in, "" for none
}

// LetterQuery selects dead letters of this cluster, newest first.
type LetterQuery struct {
	Device   string // "" is every device
	From, To int64  // of Created, microseconds, inclusive and exclusive
	Before   int64  // only with smaller ids; 0 is all
	Limit    int    // > 0
}

const selectLetters = `select id, created, shard, from_index, to_index, kind, device_id, sqlstate, reason, content, message_id
	from dead_letters where cluster = $1 and namespace = $2 and `

// DeadLetters lists what was refused. A message of more than inlineReadingsMax
// readings is in the first of its letters here.
func (db *DB) DeadLetters(ctx context.Context, q LetterQuery) ([]DeadLetter, error) {
	before := q.Before
	if before <= 0 {
		before = math.MaxInt64
	}
	letters, err := db.letters(ctx, selectLetters+"id < $3 and ($4 = '' or device_id = $4) and created >= $5 and created < $6 order by id desc limit $7",
		before, q.Device, clamp(q.From), clamp(q.To), q.Limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", explain(err))
	}
	return letters, nil
}

// DeadLetter is one of them, with the whole message that it came in.
func (db *DB) DeadLetter(ctx context.Context, id int64) (DeadLetter, error) {
	letters, err := db.letters(ctx, selectLetters+"id = $3", id)
	if err == nil && len(letters) == 0 {
		err = ErrNoLetter
	}
	if err != nil {
		return DeadLetter{}, letterError("read", id, err)
	}
	return letters[0], nil
}

// letters runs a query, whose arguments follow cluster and namespace.
func (db *DB) letters(ctx context.Context, sql string, args ...any) (letters []DeadLetter, err error) {
	err = db.withConn(ctx, func(ctx context.Context, c *conn, cluster string) error {
		rows, err := c.Query(ctx, sql, append([]any{cluster, int64(db.cfg.Namespace)}, args...)...)
		if err != nil {
			return err
		}
		letters, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (l DeadLetter, err error) {
			var shard, from, to int64
			err = r.Scan(&l.ID, &l.Created, &shard, &from, &to, &l.Kind, &l.Device, &l.SQLState, &l.Reason, &l.Content, &l.message)
			l.Shard, l.From, l.To = telemetry.ShardID(shard), uint64(from), uint64(to)
			return l, err
		})
		if err != nil {
			return err
		}
		return db.attach(ctx, c, cluster, letters)
	})
	return letters, err
}

// RefusedError says that the database refuses a row still.
type RefusedError struct{ SQLState, Reason string }

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the database refuses it still: %s (SQLSTATE %s)", e.Reason, e.SQLState)
}

// ReplayDeadLetter stores the row of a dead letter and removes the letter, in one
// transaction. Of devices and anomalies the state that came later stays. It fails
// with a *RefusedError, and the letter gets the new reason, when the row is
// refused again.
func (db *DB) ReplayDeadLetter(ctx context.Context, id int64) error {
	var refused *pgconn.PgError
	err := db.withConn(ctx, func(ctx context.Context, c *conn, cluster string) error {
		return pgx.BeginFunc(ctx, c.Conn, func(tx pgx.Tx) error {
			var kind string
			var content []byte
			err := tx.QueryRow(ctx, "select kind, content from dead_letters where cluster = $1 and namespace = $2 and id = $3 for update",
				cluster, int64(db.cfg.Namespace), id).Scan(&kind, &content)
			if errors.Is(err, pgx.ErrNoRows) {
				return ErrNoLetter
			}
			if err != nil {
				return err
			}
			sql, args, err := replay(kind, cluster, content)
			if err != nil {
				return err
			}
			err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint
				_, err := tx.Exec(ctx, sql, args...)
				return err
			})
			if refused = refusal(err); refused != nil {
				_, err = tx.Exec(ctx, "update dead_letters set sqlstate = $2, reason = $3 where id = $1", id, refused.Code, reason(refused))
				return err
			}
			if err != nil {
				return err
			}
			_, err = removeLetter(ctx, tx, cluster, int64(db.cfg.Namespace), id)
			return err
		})
	})
	if err != nil {
		return letterError("replay", id, err)
	}
	if refused != nil {
		return &RefusedError{SQLState: refused.Code, Reason: reason(refused)}
	}
	return nil
}

// ErrNotReplayable answers for a letter that holds no row.
var ErrNotReplayable = errors.New("a record of lost rows has nothing to replay: drop it once it is dealt with")

// letterError says what could not be done with a letter. That there is none, or
// nothing in it, is no illness of the database that may pass.
func letterError(what string, id int64, err error) error {
	if !errors.Is(err, ErrNoLetter) && !errors.Is(err, ErrNotReplayable) {
		err = explain(err)
	}
	return fmt.Errorf("%s dead letter %d: %w", what, id, err)
}

// content is what letters of all kinds hold.
type content struct {
	ID         string          `json:"id"`
	Device     string          `json:"device_id"`
	Sensor     string          `json:"sensor"`
	Time       int64           `json:"time_us"`
	Received   int64           `json:"received_us"`
	Bits       string          `json:"value_bits"`
	Score      float32         `json:"score"`
	Quality    int16           `json:"quality"`
	Attributes json.RawMessage `json:"attributes"`
	FirstSeen  int64           `json:"first_seen_us"`
	LastSeen   int64           `json:"last_seen_us"`
	Opened     int64           `json:"opened_us"`
	Closed     int64           `json:"closed_us"`
	Cause      string          `json:"cause"`
	Severity   float64         `json:"severity"`
	Expected   float64         `json:"expected"`
	Low        float64         `json:"low"`
	High       float64         `json:"high"`
	Shares     string          `json:"shares"`
	Wave       string          `json:"wave"`
	Normal     bool            `json:"normal"`
}

// replay is the statement that stores a letter's row.
func replay(kind, cluster string, b []byte) (sql string, args []any, err error) {
	if kind == kindLost {
		return "", nil, ErrNotReplayable
	}
	var r content
	if err := json.Unmarshal(b, &r); err != nil {
		return "", nil, fmt.Errorf("decode the letter's content: %w", err)
	}
	if kind == kindDevice {
		return `insert into devices as d (device_id, attributes, first_seen, last_seen) values ($1, $2, $3, $4)
			on conflict (device_id) do update set first_seen = least(d.first_seen, excluded.first_seen), last_seen = greatest(d.last_seen, excluded.last_seen),
			attributes = case when excluded.last_seen >= d.last_seen then excluded.attributes else d.attributes end`,
			[]any{r.Device, r.Attributes, clamp(r.FirstSeen), clamp(r.LastSeen)}, nil
	}
	bits, err := strconv.ParseUint(r.Bits, 16, 64)
	if err != nil {
		return "", nil, fmt.Errorf("decode the letter's value: %w", err)
	}
	value := math.Float64frombits(bits)
	if kind == kindReading {
		return "insert into telemetry (time, device_id, sensor, value, score, received, quality) values ($1, $2, $3, $4, $5, $6, $7)",
			[]any{clamp(r.Time), r.Device, r.Sensor, value, r.Score, clamp(r.Received), r.Quality}, nil
	}
	var closed *time.Time
	if r.Closed != 0 {
		t := clamp(r.Closed)
		closed = &t
	}
	return `insert into anomalies as a (cluster, id, device_id, sensor, cause, severity, value, expected, low, high, opened, closed, shares, wave, normal)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, nullif($14, ''), $15) on conflict (cluster, id) do update set closed = excluded.closed where a.closed is null`,
		[]any{cluster, r.ID, r.Device, r.Sensor, r.Cause, r.Severity, value, r.Expected, r.Low, r.High, clamp(r.Opened), closed, r.Shares, r.Wave, r.Normal}, nil
}

// DropDeadLetter removes a letter and the row with it.
func (db *DB) DropDeadLetter(ctx context.Context, id int64) error {
	err := db.withConn(ctx, func(ctx context.Context, c *conn, cluster string) error {
		return pgx.BeginFunc(ctx, c.Conn, func(tx pgx.Tx) error {
			there, err := removeLetter(ctx, tx, cluster, int64(db.cfg.Namespace), id)
			if err == nil && !there {
				err = ErrNoLetter
			}
			return err
		})
	})
	if err != nil {
		return letterError("drop", id, err)
	}
	return nil
}

// withConn runs one short piece of work of an operator.
func (db *DB) withConn(ctx context.Context, do func(ctx context.Context, c *conn, cluster string) error) (err error) {
	cluster, err := db.cluster()
	if err != nil {
		return err
	}
	ctx, cancel := db.join(ctx)
	defer cancel()
	c, err := db.acquire(ctx, db.reads)
	if err != nil {
		return err
	}
	defer func() { db.release(c, db.reads, err) }()
	ctx, done := db.bounded(ctx)
	defer done()
	return do(ctx, c, cluster)
}
