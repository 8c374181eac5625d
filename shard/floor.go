package shard

import "time"

// What the shared database has committed stays in the log for a while, so that
// a database that fails over to a replica without its tail can be refilled.
const (
	retainAge      = 15 * time.Minute
	retainBytesMax = 1 << 30
	retainSample   = 10 * time.Second
)

type floorSample struct {
	at        time.Time
	watermark uint64
}

// moveFloor tells the log what it may let go of: in the embedded store all that
// this replica has written and synced, with a shared database what was
// committed retainAge ago, or less where that is more than retainBytesMax.
func (f *flusher) moveFloor(now time.Time) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	durable := m.pending.durable
	m.mu.Unlock()
	if f.stores.Local != nil {
		f.shard.log.SetFloor(durable)
		return
	}
	if n := len(f.floors); n == 0 || now.Sub(f.floors[n-1].at) >= retainSample {
		f.floors = append(f.floors, floorSample{now, durable})
	}
	floor := uint64(0)
	for len(f.floors) > 0 && (now.Sub(f.floors[0].at) >= retainAge || f.shard.log.BytesSince(f.floors[0].watermark) > retainBytesMax) {
		floor = f.floors[0].watermark
		f.floors = f.floors[1:]
	}
	if floor > 0 { // a node that has just started keeps what the last run kept
		f.shard.log.SetFloor(floor)
	}
}
