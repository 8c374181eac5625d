package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Poster is a Survivor over HTTP: it posts batches for one device, each under an
// Idempotency-Key of its own, to the next address whenever the outcome of one
// is not known.
type Poster struct {
	URLs   []string // of nodes, http://host:port
	Device string
	Lines  int           // messages per request
	Pause  time.Duration // between requests
	// Patience is how long it waits for an answer before it asks another node.
	Patience time.Duration
	// OnAck, if set, is called for every acknowledged message.
	OnAck func(latency time.Duration)

	mu    sync.Mutex
	sent  uint64
	acked []uint64
}

// Run posts until ctx ends, then tries for up to settle to have its last batch
// answered.
func (p *Poster) Run(ctx context.Context, settle time.Duration) {
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(settle, cancel) })
	defer stop()
	hc := &http.Client{Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	for at := 0; ctx.Err() == nil; {
		first, body := p.take()
		began := time.Now()
		for end.Err() == nil && p.post(end, hc, p.URLs[at%len(p.URLs)], first, body) != nil {
			at++
			sleep(end, redialPause)
		}
		if end.Err() == nil {
			p.ack(first, time.Since(began))
		}
		sleep(ctx, p.Pause)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// take numbers the next batch and encodes it.
func (p *Poster) take() (first uint64, body []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first = p.sent
	for range p.Lines {
		body = append(appendMessage(body, p.Device, p.sent), '\n')
		p.sent++
	}
	return first, body
}

// post is nil when the whole batch is known to be durable.
func (p *Poster) post(ctx context.Context, hc *http.Client, url string, first uint64, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, p.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/api/v1/telemetry", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	req.Header.Set("Idempotency-Key", fmt.Sprintf("%s-%d", p.Device, first))
	res, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // read to its end below
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("post to %s: status %d", url, res.StatusCode)
	}
	var counts struct{ Applied, Duplicate int }
	if err := json.Unmarshal(b, &counts); err != nil {
		return err
	}
	if counts.Applied+counts.Duplicate != p.Lines {
		return fmt.Errorf("post to %s: %d applied and %d duplicate of %d", url, counts.Applied, counts.Duplicate, p.Lines)
	}
	return nil
}

func (p *Poster) ack(first uint64, latency time.Duration) {
	p.mu.Lock()
	for i := range p.Lines {
		p.acked = append(p.acked, first+uint64(i))
	}
	p.mu.Unlock()
	if p.OnAck != nil {
		for range p.Lines {
			p.OnAck(latency)
		}
	}
}

// Acked is how many messages were acknowledged.
func (p *Poster) Acked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.acked)
}

// History is what the client knows, for a judge.
func (p *Poster) History() History {
	p.mu.Lock()
	defer p.mu.Unlock()
	return History{Device: p.Device, Sent: p.sent, Acked: slices.Clone(p.acked)}
}
