package ingest

import (
	"sync"
	"time"
)

// beat closes the blocks that busy shards have gathered, of all shards of the
// node at the same moment: what leaves together travels in one write, is synced
// by one fsync and wakes every goroutine on its way once instead of once per
// shard.
type beat struct {
	every func() time.Duration

	mu    sync.Mutex
	armed bool
	timer *time.Timer
	dirty []*queue // with a block open since the last beat
	spare []*queue
}

// mark makes the next beat close the block that q is gathering.
func (b *beat) mark(q *queue) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dirty = append(b.dirty, q)
	if b.armed {
		return
	}
	b.armed = true
	if b.timer == nil {
		b.timer = time.AfterFunc(b.every(), b.fire)
	} else {
		b.timer.Reset(b.every())
	}
}

func (b *beat) fire() {
	b.mu.Lock()
	qs := b.dirty
	b.dirty, b.spare, b.armed = b.spare[:0], nil, false
	b.mu.Unlock()
	for _, q := range qs {
		q.close()
	}
	clear(qs)
	b.mu.Lock()
	b.spare = qs[:0]
	b.mu.Unlock()
}

func (b *beat) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
	}
}
