package faults

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
)

// A read that begins after a message was acknowledged must show it, whichever
// node is asked, a leader that was paused and does not know of its successor
// above all. Readers ask every node all the time; a node that does not answer
// is no violation, a node that answers with the past is.

// readers watch for stale reads (the part of C6 that needs no register).
type readers struct {
	done  sync.WaitGroup
	mu    sync.Mutex
	reads int
	stale []error
}

const (
	readMaxWait    = 30 * time.Second // a paused node answers when it goes on
	readPause      = 100 * time.Millisecond
	readersPerNode = 3 // so that some questions wait in a paused node at any time
	staleMax       = 5 // that are told
)

func startReaders(ctx context.Context, nodes []*devcluster.Node, devices []*bench.Survivor) *readers {
	r := &readers{}
	for _, n := range nodes {
		for k := range readersPerNode {
			r.done.Go(func() { r.run(ctx, n, devices, k) })
		}
	}
	return r
}

func (r *readers) run(ctx context.Context, n *devcluster.Node, devices []*bench.Survivor, k int) {
	cl, err := n.Client()
	if err != nil {
		r.report(err)
		return
	}
	defer cl.Close()
	for i := k; ctx.Err() == nil; i++ {
		if s := devices[i%len(devices)]; !s.NoTime {
			r.read(ctx, n, cl, s)
		}
		sleep(ctx, readPause)
	}
}

// read asks for the latest message that was acknowledged before the question.
func (r *readers) read(ctx context.Context, n *devcluster.Node, cl *client.Client, s *bench.Survivor) {
	seq, ok := s.Latest()
	if !ok {
		return
	}
	at := bench.Epoch.Add(time.Duration(seq) * time.Millisecond)
	ctx, cancel := context.WithTimeout(ctx, readMaxWait)
	defer cancel()
	page, err := cl.ReadingsPage(ctx, client.ReadingsQuery{Device: s.Device, From: at, To: at.Add(time.Microsecond)}, "")
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	if len(page.Readings) == 0 && len(r.stale) < staleMax {
		r.stale = append(r.stale, fmt.Errorf("%s: message %d was acknowledged before the read through %s, which does not show it", s.Device, seq, n.ID))
	}
}

// crowd asks a node many questions at once; the answers are awaited with the
// readers' end.
func (r *readers) crowd(ctx context.Context, n *devcluster.Node, devices []*bench.Survivor, count int) {
	for i := range count {
		r.done.Go(func() {
			cl, err := n.Client()
			if err != nil {
				r.report(err)
				return
			}
			defer cl.Close()
			if s := devices[i%len(devices)]; !s.NoTime {
				r.read(ctx, n, cl, s)
			}
		})
	}
}

func (r *readers) report(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stale = append(r.stale, err)
}
