package postgres

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluice-iot/sluice/telemetry"
)

// The kinds of dead letters.
const (
	kindReading = "reading"
	kindDevice  = "device"
	kindAnomaly = "anomaly"
	kindLost    = "lost" // not refused: an operator has accepted that these entries' rows are gone
)

const (
	// siftMax is how many rows the search for refused rows begins with: a
	// refused row costs the rows of its part once more.
	siftMax = 1024
	// reasonMax bounds the server's text in a dead letter, in bytes.
	reasonMax = 1024
)

// letter is a row that the database refused.
type letter struct {
	batch                       *telemetry.Batch
	kind, device, state, reason string
	content                     []byte // JSON
	row                         int    // of the batch, of a reading
	message                     string // id of the message that it came in, "" for none
}

type span struct{ lo, hi int }

// sift puts all rows but those that the database refuses, each part of them
// behind a savepoint: it splits what is refused at the row that the server
// names, or in halves, until single rows are left.
func (w *writer) sift(ctx context.Context, n int, put func(ctx context.Context, lo, hi int) error, dead func(i int) letter) error {
	var todo []span // the next one last
	for hi := n; hi > 0; {
		lo := (hi - 1) / siftMax * siftMax
		todo = append(todo, span{lo, hi})
		hi = lo
	}
	guess, trust := -1, true // the row that the server named; it may count otherwise than we do
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		refused, err := w.try(ctx, s, put)
		if err != nil {
			return err
		}
		single := s.hi-s.lo == 1
		switch {
		case refused == nil:
			trust = trust && !(single && s.lo == guess)
		case single:
			l := dead(s.lo)
			l.batch = w.requests[0].batch
			l.state, l.reason = refused.Code, reason(refused)
			w.letters = append(w.letters, l)
		default:
			guess = -1
			if line := copyLine(refused); trust && line > 0 && s.lo+line <= s.hi {
				guess = s.lo + line - 1
			}
			todo = split(todo, s, guess)
		}
	}
	return nil
}

// split pushes the parts of s so that the first comes off first.
func split(todo []span, s span, guess int) []span {
	cuts := []span{{s.lo, (s.lo + s.hi) / 2}, {(s.lo + s.hi) / 2, s.hi}}
	if guess >= 0 {
		cuts = []span{{s.lo, guess}, {guess, guess + 1}, {guess + 1, s.hi}}
	}
	for i := len(cuts) - 1; i >= 0; i-- {
		if cuts[i].lo < cuts[i].hi {
			todo = append(todo, cuts[i])
		}
	}
	return todo
}

// try puts rows and undoes that when the database refuses one of them.
func (w *writer) try(ctx context.Context, s span, put func(ctx context.Context, lo, hi int) error) (*pgconn.PgError, error) {
	if _, err := w.exec(ctx, "savepoint part"); err != nil {
		return nil, fmt.Errorf("set savepoint: %w", err)
	}
	err := put(ctx, s.lo, s.hi)
	undo, refused := "release part", refusal(err)
	switch {
	case refused != nil:
		undo = "rollback to part; release part"
	case err != nil:
		return nil, err
	}
	if _, err := w.exec(ctx, undo); err != nil {
		return nil, fmt.Errorf("leave savepoint: %w", err)
	}
	return refused, nil
}

// copyContext finds the line in the context of a COPY's error, in any language.
var copyContext = regexp.MustCompile(`(?m)^COPY \S+, \D*(\d+)`)

func copyLine(e *pgconn.PgError) int {
	m := copyContext.FindStringSubmatch(e.Where)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return n
}

func reason(e *pgconn.PgError) string {
	s := e.Message
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if len(s) > reasonMax {
		s = s[:reasonMax]
	}
	return clean(s)
}

// clean makes a text that every UTF-8 database takes.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}

func (w *writer) readingLetter(i int) letter {
	b := w.requests[0].batch
	r := &b.Rows[i]
	device := b.Devices[r.Device]
	l := newLetter(kindReading, device, map[string]any{
		"device_id": device, "sensor": b.Sensors[r.Sensor], "time_us": r.Time, "received_us": r.Received,
		"time": timeText(r.Time), "value": number(r.Value), "value_bits": bits(r.Value),
		"score": number(float64(r.Score)), "quality": r.Quality,
	})
	l.row = i
	return l
}

func (w *writer) deviceLetter(i int) letter {
	u := &w.updates[i]
	return newLetter(kindDevice, u.Device, map[string]any{
		"device_id": u.Device, "attributes": json.RawMessage(attributesJSON(u.Attributes)),
		"first_seen_us": u.FirstSeen, "last_seen_us": u.LastSeen,
	})
}

func (w *writer) anomalyLetter(i int) letter {
	a := &w.anomalies[i]
	return newLetter(kindAnomaly, a.Device, map[string]any{
		"id": a.ID, "device_id": a.Device, "sensor": a.Sensor, "opened_us": a.Opened, "closed_us": a.Closed,
		"severity": number(a.Severity), "cause": a.Cause, "value": number(a.Value), "value_bits": bits(a.Value),
		"expected": number(a.Expected), "low": number(a.Low), "high": number(a.High),
		"shares": a.Shares, "wave": a.Wave, "normal": a.Normal,
	})
}

func newLetter(kind, device string, content map[string]any) letter {
	for k, v := range content {
		if s, ok := v.(string); ok {
			content[k] = clean(s)
		}
	}
	l := letter{kind: kind, device: clean(device)}
	var err error
	if l.content, err = json.Marshal(content); err != nil {
		l.content = []byte("{}") // numbers and clean texts: it cannot happen
	}
	return l
}

func timeText(us int64) string { return time.UnixMicro(us).UTC().Format(time.RFC3339Nano) }

// number is nil for what JSON has no number for.
func number(f float64) any {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil
	}
	return f
}

// bits is the exact value as a reader of any language can restore it.
func bits(f float64) string {
	u := math.Float64bits(f)
	return hex.EncodeToString([]byte{byte(u >> 56), byte(u >> 48), byte(u >> 40), byte(u >> 32), byte(u >> 24), byte(u >> 16), byte(u >> 8), byte(u)})
}

// lostLetter records that a range's rows are gone for good.
func lostLetter(b *telemetry.Batch) letter {
	l := newLetter(kindLost, "", map[string]any{"lane": b.Lane.String()})
	l.batch, l.reason = b, "the database had lost these rows and the log no longer had them; an operator has accepted that"
	return l
}

// keepLetters stores what was refused in the same transaction.
func (w *writer) keepLetters(ctx context.Context) error {
	if err := w.keepMessages(ctx); err != nil {
		return err
	}
	for lo := 0; lo < len(w.letters); lo += upsertMax {
		part := w.letters[lo:min(lo+upsertMax, len(w.letters))]
		var kinds, devices, states, reasons, contents, messages []string
		var shards, from, to []int64
		for i := range part {
			l := &part[i]
			shards, from, to = append(shards, int64(l.batch.Shard)), append(from, int64(l.batch.From)), append(to, int64(l.batch.To))
			kinds, devices, states = append(kinds, l.kind), append(devices, l.device), append(states, l.state)
			reasons, contents, messages = append(reasons, l.reason), append(contents, string(l.content)), append(messages, l.message)
		}
		if _, err := w.exec(ctx, `insert into dead_letters (cluster, namespace, shard, from_index, to_index, kind, device_id, sqlstate, reason, content, message_id)
			select $1, $2, shard, from_index, to_index, kind, device_id, sqlstate, reason, content::jsonb, message_id
			from unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[])
			as l(shard, from_index, to_index, kind, device_id, sqlstate, reason, content, message_id)`,
			w.cluster, int64(w.db.cfg.Namespace), shards, from, to, kinds, devices, states, reasons, contents, messages); err != nil {
			return fmt.Errorf("store dead letters: %w", err)
		}
	}
	return nil
}
