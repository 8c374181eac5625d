package faults

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// A full disk: what does not fit is refused, what is there stays, and nothing
// has to be started again. The log has to need a new segment for that, so bulky
// messages are posted beside the fleet until the node says that it is full.

const (
	fillBytes  = 256 << 10 // of incompressible text per request
	fillersMax = 2
	fullWithin = 60 * time.Second
)

func fullDisk(ctx context.Context, r *Run) error {
	victim := r.rng.IntN(nodesCount)
	n := r.Cluster.Nodes()[victim]
	r.Disks[victim].SetFull(true)
	fill, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i := range fillersMax {
		other := r.Cluster.Nodes()[(victim+1+i)%nodesCount]
		wg.Go(func() { filler(fill, "http://"+other.HTTP, i) })
	}
	full, err := r.saysFull(ctx, victim)
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	r.note = fmt.Sprintf("unready after %v", full.Round(100*time.Millisecond))
	sleep(ctx, away)
	if !n.Running() {
		return fmt.Errorf("%s has ended because its disk is full", n.ID)
	}
	r.strikes() // the others went on; from here the node has to come back
	r.Disks[victim].SetFull(false)
	if err := n.WaitReady(ctx); err != nil {
		return fmt.Errorf("after the disk has room again: %w", err)
	}
	return nil
}

// saysFull waits until the node is not ready because of its disk.
func (r *Run) saysFull(ctx context.Context, node int) (time.Duration, error) {
	n := r.Cluster.Nodes()[node]
	began, last := time.Now(), error(nil)
	for time.Since(began) < fullWithin && ctx.Err() == nil {
		cl, err := n.Client()
		if err != nil {
			return 0, err
		}
		last = cl.Ready(ctx)
		cl.Close()
		if last != nil && strings.Contains(last.Error(), "disk") {
			return time.Since(began), nil
		}
		if !n.Running() {
			return 0, fmt.Errorf("%s has ended because its disk is full", n.ID)
		}
		sleep(ctx, 100*time.Millisecond)
	}
	if last == nil {
		return 0, fmt.Errorf("%s is still ready %v after its disk was full", n.ID, fullWithin)
	}
	return 0, fmt.Errorf("%s does not say within %v that its disk is full: %w", n.ID, fullWithin, last)
}

// filler posts text that no compression makes small, as an attribute; what
// becomes of it does not matter.
func filler(ctx context.Context, url string, id int) {
	hc := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	noise := make([]byte, fillBytes*3/4/64)
	for ctx.Err() == nil {
		var b strings.Builder
		for i := range 64 {
			_, _ = rand.Read(noise) // never fails
			fmt.Fprintf(&b, `{"device_id":"filler-%d-%d","sensors":{"x":1},"metadata":{"noise":%q}}`+"\n", id, i, base64.StdEncoding.EncodeToString(noise))
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/api/v1/telemetry", strings.NewReader(b.String()))
		if err != nil {
			return
		}
		req.Header.Set("Content-Type", "application/x-ndjson")
		if res, err := hc.Do(req); err == nil {
			_ = res.Body.Close() // only the volume matters
		}
	}
}
