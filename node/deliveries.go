package node

import (
	"sync"

	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// deliveries knows how far the events of each shard have been delivered: they may
// be done in any order, and a shard forgets its events from the oldest on.
type deliveries struct {
	confirm func(telemetry.ShardID, uint64)

	mu   sync.Mutex
	open map[telemetry.ShardID][]delivery // in the order of expect
}

type delivery struct {
	index uint64
	done  bool
}

func newDeliveries(confirm func(telemetry.ShardID, uint64)) *deliveries {
	return &deliveries{confirm: confirm, open: map[telemetry.ShardID][]delivery{}}
}

// expect notes events that will be delivered, each as often as it is told.
func (d *deliveries) expect(events []shard.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range events {
		d.open[events[i].Shard] = append(d.open[events[i].Shard], delivery{index: events[i].Index})
	}
}

// done notes that one event was delivered; what has no older one open is
// confirmed.
func (d *deliveries) done(id telemetry.ShardID, index uint64) {
	if to := d.settle(id, index); to > 0 {
		d.confirm(id, to)
	}
}

// settle returns the index up to which everything was delivered, 0 for nothing
// new.
func (d *deliveries) settle(id telemetry.ShardID, index uint64) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.open[id]
	for i := range list {
		if list[i].index == index && !list[i].done {
			list[i].done = true
			break
		}
	}
	to, n := uint64(0), 0
	for ; n < len(list) && list[n].done; n++ {
		to = max(to, list[n].index)
	}
	if list = list[n:]; len(list) == 0 {
		delete(d.open, id)
		return to
	}
	d.open[id] = list
	for _, x := range list {
		if !x.done && x.index <= to {
			to = x.index - 1 // of the same entry, or told again
		}
	}
	return to
}

// forget is for a shard that is led elsewhere: what of it is not delivered here is told
// there, and confirmed by whoever has told it.
func (d *deliveries) forget(id telemetry.ShardID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, id)
}
