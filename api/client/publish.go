package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/sluice-iot/sluice/api"
)

// ndjson is one message per line.
const ndjson = "application/x-ndjson"

// NewKey draws an Idempotency-Key.
func NewKey() string { return rand.Text() }

// Publish sends messages, one per line, and returns when they are durable. It is
// repeated under one Idempotency-Key until the outcome is known; key "" draws
// one. The counts hold beside an *Error too, where the node gave them.
func (c *Client) Publish(ctx context.Context, lines []byte, key string) (api.Counts, error) {
	if key == "" {
		key = NewKey()
	}
	return counted(ask[api.Counts](ctx, c, &call{
		method: http.MethodPost, path: "/api/v1/telemetry", body: lines,
		header: http.Header{"Content-Type": {ndjson}, "Idempotency-Key": {key}},
	}))
}

// PublishStream sends one long request as r is read, without a repeat; key may
// be "". Use Upload for more than a node takes in one body.
func (c *Client) PublishStream(ctx context.Context, r io.Reader, key string) (api.Counts, error) {
	header := http.Header{"Content-Type": {ndjson}}
	if key != "" {
		header["Idempotency-Key"] = []string{key}
	}
	return counted(ask[api.Counts](ctx, c, &call{method: http.MethodPost, path: "/api/v1/telemetry", stream: r, header: header}))
}

// counted takes the counts out of a problem.
func counted(counts api.Counts, err error) (api.Counts, error) {
	var e *Error
	if errors.As(err, &e) && e.Counts != nil {
		return *e.Counts, err
	}
	return counts, err
}

// UploadConfig steers Upload.
type UploadConfig struct {
	Lines       int  // per request, 0 is 500
	Concurrency int  // requests under way, 0 is 2; more than 1 may reorder messages of different requests
	Compress    bool // zstd, for slow links
	// Skip passes over lines at the beginning: Progress of an earlier, broken
	// upload says how many.
	Skip int64
	// Key makes a resumed upload harmless for messages without a timestamp: the
	// same file with the same Lines and the same Key. "" draws one.
	Key string
	// Progress is called after every request, in the order of the input, with
	// the lines that are settled so far (Skip included); may be nil.
	Progress func(lines int64, counts api.Counts)
	// Rejected is called for every line that was not applied, before Progress;
	// line counts from 1; may be nil.
	Rejected func(line int64, reason string)
}

const (
	uploadLinesDefault       = 500
	uploadConcurrencyDefault = 2
	uploadBytesMax           = 8 << 20  // of one request, well below what a node takes
	uploadLineBytesMax       = 16 << 20 // longer lines are no messages
)

// batch is one request of an upload.
type batch struct {
	first  int64 // line, from 1
	lines  int64
	body   []byte
	counts api.Counts
	err    error
	done   chan struct{}
}

// Upload sends NDJSON of any length in batches and returns the counts of what is
// settled; Errors is empty in them, see Rejected. A batch that is refused as a
// whole because every message is bad does not end the upload.
func (c *Client) Upload(ctx context.Context, r io.Reader, cfg UploadConfig) (api.Counts, error) {
	if cfg.Lines <= 0 {
		cfg.Lines = uploadLinesDefault
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = uploadConcurrencyDefault
	}
	if cfg.Key == "" {
		cfg.Key = NewKey()
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	queue := make(chan *batch, cfg.Concurrency-1) // with the one being collected: Concurrency
	var readErr error
	running.Go(func() {
		defer close(queue)
		readErr = readBatches(r, &cfg, func(b *batch) bool {
			select {
			case queue <- b:
			case <-ctx.Done():
				return false
			}
			running.Go(func() {
				defer close(b.done)
				b.counts, b.err = c.publishBatch(ctx, b, &cfg)
			})
			return true
		})
	})
	total, err := collect(queue, &cfg)
	if err == nil && readErr != nil {
		err = fmt.Errorf("read the lines to upload: %w", readErr)
	}
	if err == nil {
		err = ctx.Err()
	}
	return total, err
}

// collect waits for the batches in their order.
func collect(queue <-chan *batch, cfg *UploadConfig) (total api.Counts, err error) {
	for b := range queue {
		<-b.done
		if b.err != nil {
			return total, b.err
		}
		total.Received += b.counts.Received
		total.Applied += b.counts.Applied
		total.Duplicate += b.counts.Duplicate
		total.Quarantined += b.counts.Quarantined
		total.Refused += b.counts.Refused
		if cfg.Rejected != nil {
			for _, e := range b.counts.Errors {
				cfg.Rejected(b.first+int64(e.Line)-1, e.Reason)
			}
		}
		if cfg.Progress != nil {
			cfg.Progress(b.first+b.lines-1, total)
		}
	}
	return total, nil
}

func (c *Client) publishBatch(ctx context.Context, b *batch, cfg *UploadConfig) (api.Counts, error) {
	r := &call{method: http.MethodPost, path: "/api/v1/telemetry", body: b.body, header: http.Header{
		"Content-Type": {ndjson}, "Idempotency-Key": {fmt.Sprintf("%s-%d", cfg.Key, b.first)},
	}}
	if cfg.Compress {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return api.Counts{}, fmt.Errorf("compress a batch: %w", err)
		}
		r.body = z.EncodeAll(b.body, nil)
		r.header["Content-Encoding"] = []string{"zstd"}
	}
	counts, err := counted(ask[api.Counts](ctx, c, r))
	var e *Error
	if errors.As(err, &e) && e.Counts != nil && (e.Status == http.StatusUnprocessableEntity || e.Status == http.StatusRequestEntityTooLarge) && counts.Received > 0 {
		return counts, nil // every message of it is bad, which the counts say
	}
	if err != nil {
		return counts, fmt.Errorf("upload lines %d to %d: %w", b.first, b.first+b.lines-1, err)
	}
	return counts, nil
}

// readBatches cuts the input; give reports whether to go on.
func readBatches(r io.Reader, cfg *UploadConfig, give func(*batch) bool) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), uploadLineBytesMax)
	var b *batch
	line := int64(0)
	for in.Scan() {
		line++
		if line <= cfg.Skip {
			continue
		}
		if b == nil {
			b = &batch{first: line, done: make(chan struct{})}
		}
		b.body = append(append(b.body, in.Bytes()...), '\n')
		b.lines++
		if b.lines >= int64(cfg.Lines) || len(b.body) >= uploadBytesMax {
			if !give(b) {
				return nil
			}
			b = nil
		}
	}
	if b != nil && len(bytes.TrimSpace(b.body)) > 0 && in.Err() == nil {
		give(b)
	}
	return in.Err()
}
