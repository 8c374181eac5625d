package shard

import "time"

// What a shared database has committed stays in the log for a while, so that a
// database that fails over to a replica without its tail can be refilled.
const (
	retainDefault      = 15 * time.Minute
	retainBytesDefault = 1 << 30
	// retainBlocksMax bounds what is kept in memory about it.
	retainBlocksMax = 1 << 16
	retainSample    = 10 * time.Second
)

type floorSample struct {
	at      time.Time
	durable uint64
}

// moveFloor tells the log what it may let go of: in the embedded store all that
// this replica has written and synced, with a shared database what was committed
// long enough before the latest commit. An outage therefore keeps what was
// committed before it, however long it lasts.
func (f *flusher) moveFloor(now time.Time) {
	m := f.shard.fsm.machine
	m.mu.Lock()
	durable := m.pending.durable
	crowd := m.pending.crowded(retainBlocksMax) // keeping more than this would be too many blocks
	m.mu.Unlock()
	if f.stores.Local != nil {
		f.shard.log.SetFloor(durable)
		return
	}
	floor := f.sample(now, durable, crowd)
	if f.turns.room().short {
		floor = durable
	}
	if floor == 0 {
		return // a node that has just started keeps what the last run kept
	}
	m.mu.Lock()
	m.pending.trim(floor)
	m.mu.Unlock()
	f.shard.log.SetFloor(floor)
}

// sample notes the durable index and returns the floor that follows, 0 for none.
func (f *flusher) sample(now time.Time, durable, crowd uint64) (floor uint64) {
	if n := len(f.floors); n == 0 || f.floors[n-1].durable != durable && now.Sub(f.floors[n-1].at) >= min(retainSample, f.cfg.Retain) {
		f.floors = append(f.floors, floorSample{now, durable})
	}
	latest := f.floors[len(f.floors)-1].at
	waiting, most := f.shard.log.BytesSince(durable), f.turns.room().bound(f.cfg.RetainBytes, retainShare)
	for len(f.floors) > 1 {
		s := f.floors[0]
		if latest.Sub(s.at) < f.cfg.Retain && f.shard.log.BytesSince(s.durable)-waiting <= most && s.durable > crowd {
			break
		}
		floor = s.durable
		f.floors = f.floors[1:]
	}
	return max(floor, min(crowd, durable))
}
