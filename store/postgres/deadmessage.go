package postgres

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/telemetry"
)

// refusedMessage is a message of which the database refused readings.
type refusedMessage struct {
	id, device, key string
	received        int64
	readings, nulls int
	content         []byte // JSON, as it can be published again
}

// findMessages gives the letters of readings the messages that these came in. They
// are of one batch: refused rows are searched for in one alone.
func (w *writer) findMessages() error {
	byRow := map[int]*letter{}
	var rows []int
	for i := range w.letters {
		if l := &w.letters[i]; l.kind == kindReading && l.batch.Sources != nil {
			byRow[l.row] = l
			rows = append(rows, l.row)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	return byRow[rows[0]].batch.Sources(rows, func(row int, s *telemetry.Source) error {
		byRow[row].message = s.ID
		if n := len(w.messages); n == 0 || w.messages[n-1].id != s.ID { // in the order of the log
			w.messages = append(w.messages, newRefusedMessage(s))
		}
		return nil
	})
}

func newRefusedMessage(s *telemetry.Source) refusedMessage {
	m := &s.Message
	r := refusedMessage{id: s.ID, device: clean(m.Device), received: m.Received, readings: len(m.Readings), nulls: int(m.Nulls)}
	if m.Dup != (telemetry.DupKey{}) {
		r.key = hex.EncodeToString(m.Dup[:])
	}
	sensors := make(map[string]json.RawMessage, len(m.Readings))
	for i := range m.Readings {
		sensors[clean(m.Readings[i].Sensor)] = m.Readings[i].Value.AppendJSON(nil)
	}
	content := map[string]any{"device_id": r.device, "sensors": sensors}
	if !m.NoTime {
		content["timestamp"] = timeText(m.Time)
	}
	if len(m.Attributes) > 0 {
		attributes := make(map[string]string, len(m.Attributes))
		for _, a := range m.Attributes {
			attributes[clean(a.Key)] = clean(a.Value)
		}
		content["metadata"] = attributes
	}
	var err error
	if r.content, err = json.Marshal(content); err != nil {
		r.content = []byte("{}") // numbers and clean texts: it cannot happen
	}
	return r
}

// messagesMax is how many messages one insert holds: 32 MiB when each has as many
// readings as it may.
const messagesMax = 256

// keepMessages stores the messages that letters refer to. What is there is the
// same: the id names an entry of the log.
func (w *writer) keepMessages(ctx context.Context) error {
	for lo := 0; lo < len(w.messages); lo += messagesMax {
		part := w.messages[lo:min(lo+messagesMax, len(w.messages))]
		var ids, devices, keys, contents []string
		var received []time.Time
		var readings, nulls []int32
		for i := range part {
			m := &part[i]
			ids, devices, keys, contents = append(ids, m.id), append(devices, m.device), append(keys, m.key), append(contents, string(m.content))
			received, readings, nulls = append(received, clamp(m.received)), append(readings, int32(m.readings)), append(nulls, int32(m.nulls))
		}
		if _, err := w.exec(ctx, `insert into dead_messages (cluster, namespace, id, device_id, key, received, readings, nulls, content)
			select $1, $2, id, device_id, key, received, readings, nulls, content::jsonb
			from unnest($3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::int[], $8::int[], $9::text[])
			as m(id, device_id, key, received, readings, nulls, content)
			on conflict (cluster, namespace, id) do nothing`,
			w.cluster, int64(w.db.cfg.Namespace), ids, devices, keys, received, readings, nulls, contents); err != nil {
			return fmt.Errorf("store the messages of dead letters: %w", err)
		}
	}
	return nil
}

// inlineReadingsMax bounds the messages that each letter of a list repeats: a
// longer one stands in the first of them. A message may have 1,024 readings, and a
// list the letters of all.
const inlineReadingsMax = 64

// attach adds the messages to the contents of a list of letters.
func (db *DB) attach(ctx context.Context, c *conn, cluster string, letters []DeadLetter) error {
	var ids []string
	for i := range letters {
		if id := letters[i].message; id != "" {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	rows, err := c.Query(ctx, `select id, key, received, readings, nulls, content from dead_messages
		where cluster = $1 and namespace = $2 and id = any($3::text[])`, cluster, int64(db.cfg.Namespace), ids)
	if err != nil {
		return err
	}
	found := map[string]*refusedMessage{}
	_, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (struct{}, error) {
		m := &refusedMessage{}
		var at time.Time
		err := r.Scan(&m.id, &m.key, &at, &m.readings, &m.nulls, &m.content)
		m.received = at.UnixMicro()
		found[m.id] = m
		return struct{}{}, err
	})
	if err != nil {
		return err
	}
	shown := map[string]bool{}
	for i := range letters {
		l := &letters[i]
		if m := found[l.message]; m != nil {
			l.Content = m.into(l.Content, m.readings <= inlineReadingsMax || !shown[m.id])
			shown[m.id] = true
		}
	}
	return nil
}

// into adds what is known of the message to the content of a letter, an object.
func (m *refusedMessage) into(content []byte, whole bool) []byte {
	b := bytes.TrimSuffix(bytes.TrimSpace(content), []byte("}"))
	b = fmt.Appendf(bytes.Clone(b), `, "message_id": %q`, m.id)
	if m.key != "" {
		b = fmt.Appendf(b, `, "message_key": %q`, m.key)
	}
	if m.nulls > 0 {
		b = fmt.Appendf(b, `, "message_nulls": %d`, m.nulls)
	}
	if whole {
		b = fmt.Appendf(b, `, "message": %s`, m.content)
	}
	return append(b, '}')
}

// removeLetter removes a letter, and its message with the last letter of it, and
// reports whether it was there.
func removeLetter(ctx context.Context, tx pgx.Tx, cluster string, namespace, id int64) (bool, error) {
	// Whoever takes the last two letters at the same time takes turns here.
	if _, err := tx.Exec(ctx, `select from dead_messages where cluster = $1 and namespace = $2
		and id = (select message_id from dead_letters where cluster = $1 and namespace = $2 and id = $3) for update`, cluster, namespace, id); err != nil {
		return false, err
	}
	var message string
	err := tx.QueryRow(ctx, "delete from dead_letters where cluster = $1 and namespace = $2 and id = $3 returning message_id", cluster, namespace, id).Scan(&message)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil || message == "" {
		return err == nil, err
	}
	_, err = tx.Exec(ctx, `delete from dead_messages m where cluster = $1 and namespace = $2 and id = $3
		and not exists (select from dead_letters l where l.cluster = m.cluster and l.namespace = m.namespace and l.message_id = m.id)`, cluster, namespace, message)
	return true, err
}
