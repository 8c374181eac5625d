package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/publisher"
)

// tickEvery bounds how long a batch waits for its end, and how long an idle
// importer does not look around.
const tickEvery = 200 * time.Millisecond

// syncEvery is how often the state file is forced to the disk.
const syncEvery = time.Second

// formatOf decides by the option, the name, the first byte.
func formatOf(cfg *Config, sample []byte) string {
	if cfg.Format != FormatAuto {
		return cfg.Format
	}
	name := strings.TrimSuffix(strings.ToLower(cfg.Path), ".gz")
	for _, end := range []string{".ndjson", ".jsonl"} {
		if strings.HasSuffix(name, end) {
			return FormatNDJSON
		}
	}
	if b := bytes.TrimLeft(sample, "\xef\xbb\xbf \t\r\n"); len(b) > 0 && (b[0] == '{' || b[0] == '[') {
		return FormatNDJSON
	}
	return FormatCSV
}

// transfer sends all lines and waits for their answers.
func (r *run) transfer(ctx context.Context) error {
	reading, stop := context.WithCancel(context.WithoutCancel(ctx))
	chunks := make(chan chunk, chunksAhead)
	var wg sync.WaitGroup
	wg.Go(func() { r.src.read(reading, chunks) })
	defer func() {
		stop()
		if r.cfg.Path != "-" { // a read of standard input may last for ever
			r.src.close() // ends a read of a pipe
			wg.Wait()
		}
	}()
	err := r.pump(ctx, chunks)
	if err == nil {
		err = r.settle(ctx)
	}
	if err != nil && !errors.Is(err, errState) {
		// What is under way may still be answered: the less is sent twice.
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.DrainTimeout)
		defer cancel()
		_ = r.settle(drain) // the first error is the one to tell
		if ctx.Err() != nil {
			err = fmt.Errorf("%w after line %d", ErrInterrupted, r.ledger.at.line)
		}
		return errors.Join(err, r.store(true))
	}
	if err != nil {
		return err
	}
	r.state.Complete = true
	return r.store(true)
}

// pump sends what comes out of chunks until its end.
func (r *run) pump(ctx context.Context, chunks <-chan chunk) error {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case c, ok := <-chunks:
			if !ok {
				return nil
			}
			for i := range c.lines {
				if err := r.line(ctx, &c.lines[i]); err != nil {
					return err
				}
			}
			r.im.raw.Store(c.raw)
			if c.err != nil {
				return c.err
			}
			if err := r.collect(); err != nil {
				return err
			}
		case <-r.answers.ready:
			if err := r.collect(); err != nil {
				return err
			}
		case <-tick.C:
			if err := r.sendAll(ctx); err != nil {
				return err
			}
			if err := r.collect(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settle sends what is left and waits until nothing is under way.
func (r *run) settle(ctx context.Context) error {
	if err := r.sendAll(ctx); err != nil {
		return err
	}
	for r.flying > 0 {
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
	return r.collect()
}

// line gives one line its way.
func (r *run) line(ctx context.Context, l *line) error {
	from := position{l.number - 1, l.offset}
	skip := func(c Counts) {
		c.Lines = 1
		r.ledger.entries = append(r.ledger.entries, &entry{from: from, last: l.number, conn: -1, done: true, counts: c})
		r.live(c)
	}
	defer func() { r.read = position{l.number, l.next} }()
	if l.number == 1 && r.plan != nil && !r.cfg.Mapping.NoHeader || len(bytes.TrimSpace(l.text)) == 0 {
		skip(Counts{Empty: 1})
		return nil
	}
	body, device, messages, readings, err := r.body(l)
	if errors.Is(err, errNothing) {
		skip(Counts{Empty: 1})
		return nil
	}
	if err != nil {
		r.bad(l.number, err.Error())
		skip(Counts{Bad: 1})
		return nil
	}
	conn := r.connOf(device)
	if err := r.room(ctx, conn, messages); err != nil {
		return err
	}
	b := &r.batches[conn]
	if b.entry == nil {
		b.entry, b.device, b.mixed = &entry{from: from, conn: conn}, device, false
		r.ledger.entries = append(r.ledger.entries, b.entry)
	} else {
		b.body = append(b.body, ',')
	}
	b.body = append(b.body, body...)
	b.mixed = b.mixed || b.device != device
	b.entry.last = l.number
	b.entry.messages += messages
	b.entry.readings += readings
	b.entry.counts.Lines++
	r.ledger.unsaved[conn] += messages
	if b.entry.counts.Lines >= int64(r.cfg.Batch) || r.ndjson != nil || len(b.body) > batchBytesMax {
		return r.send(ctx, conn)
	}
	return nil
}

// body is the JSON of a line.
func (r *run) body(l *line) (body []byte, device string, messages, readings int, err error) {
	if l.tooLong {
		return nil, "", 0, 0, fmt.Errorf("line is longer than %d bytes", lineBytesMax)
	}
	if r.ndjson != nil {
		device, messages, readings, err = r.ndjson.message(l.text)
		return l.text, device, messages, readings, err
	}
	body, device, readings, err = r.plan.message(nil, l.text, &r.fields)
	return body, device, 1, readings, err
}

func (r *run) bad(line int64, reason string) {
	if r.cfg.Bad != nil {
		r.cfg.Bad(line, reason)
	}
}

// live updates what Progress shows.
func (r *run) live(c Counts) {
	r.im.mu.Lock()
	defer r.im.mu.Unlock()
	r.im.counts.add(c)
}

// room waits until a connection may have so many messages more beyond the saved
// position, and until nothing is older than stallMax.
func (r *run) room(ctx context.Context, conn, messages int) error {
	blocked := func() bool {
		full := r.ledger.unsaved[conn] > 0 && r.ledger.unsaved[conn]+messages > unsavedMax
		return full || !r.ledger.oldest.IsZero() && time.Since(r.ledger.oldest) > stallMax
	}
	if !blocked() {
		return nil
	}
	// Lines in batches hold the position back.
	if err := r.sendAll(ctx); err != nil {
		return err
	}
	for blocked() {
		if err := r.collect(); err != nil {
			return err
		}
		if r.ledger.at != r.savedAt {
			if err := r.store(false); err != nil {
				return err
			}
			continue
		}
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for an answer.
func (r *run) wait(ctx context.Context) error {
	select {
	case <-r.answers.ready:
		return r.collect()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sendAll sends all batches that wait.
func (r *run) sendAll(ctx context.Context) error {
	for i := range r.batches {
		if err := r.send(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// send publishes the batch of a connection, when there is one.
func (r *run) send(ctx context.Context, conn int) error {
	b := &r.batches[conn]
	if b.entry == nil {
		return nil
	}
	for r.flying >= r.cfg.InFlight {
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
	e := b.entry
	topic := "devices/" + b.device + "/telemetry"
	if b.mixed {
		topic = "gateways/" + r.state.Client + "/telemetry"
	}
	payload := b.body
	if r.ndjson == nil && e.counts.Lines > 1 {
		payload = slices.Concat([]byte{'['}, b.body, []byte{']'})
	}
	publish := r.pubs[conn].Publish
	if r.repeats[conn] > 0 {
		publish = r.pubs[conn].Repeat
		r.repeats[conn] -= e.messages
	}
	e.sent = time.Now()
	if err := publish(ctx, topic, payload, func(res publisher.Result) { r.answers.put(e, res) }); err != nil {
		return err
	}
	r.flying++
	r.im.flying.Add(1)
	*b = batch{}
	return nil
}

// errState marks errors of the state file: saving again would fail again.
var errState = errors.New("position not saved")

// collect takes the answers, moves the position, and saves it when it is time.
func (r *run) collect() error {
	r.spare = r.answers.take(r.spare)
	for _, a := range r.spare {
		r.settled(a.entry, &a.result)
	}
	clear(r.spare)
	r.ledger.advance(r.read)
	if r.ledger.at == r.savedAt {
		return nil
	}
	if time.Since(r.syncedAt) >= syncEvery {
		return r.store(true)
	}
	for i, n := range r.ledger.unsaved {
		if n > unsavedMax/2 && r.ledger.settled[i] > unsavedMax/4 {
			return r.store(false)
		}
	}
	return nil
}

// settled writes an answer into its entry.
func (r *run) settled(e *entry, res *publisher.Result) {
	r.flying--
	r.im.flying.Add(-1)
	n := int64(e.messages)
	switch {
	case errors.Is(res.Err, publisher.ErrClosed):
		return // not known: sent again by the next run
	case res.OK():
		e.counts.Messages, e.counts.Readings = n, int64(e.readings)
	case res.Err != nil:
		e.counts.Refused = n
		r.bad(e.from.line+1, res.Err.Error())
	case res.Reason == publisher.ReasonQuarantined:
		e.counts.Quarantined = n
		r.bad(e.from.line+1, "quarantined: "+res.Text)
	default:
		e.counts.Refused = n
		r.bad(e.from.line+1, fmt.Sprintf("refused with reason 0x%02x %s", res.Reason, res.Text))
	}
	e.done = true
	r.live(e.counts)
}

// store writes the state file.
func (r *run) store(sync bool) error {
	r.savedAt = r.ledger.at
	if sync {
		r.syncedAt = time.Now()
	}
	if r.file != nil {
		r.state.Line, r.state.Offset, r.state.Counts = r.ledger.at.line, r.ledger.at.offset, r.ledger.counts
		r.state.PacketIDs = slices.Clone(r.ledger.next)
		if err := r.file.save(&r.state, sync); err != nil {
			return fmt.Errorf("%w: %w", errState, err)
		}
	}
	r.ledger.saved()
	return nil
}
