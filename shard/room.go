package shard

// What a shard may keep of its log although the store has it, as a part of its
// even share of the log's budget: so that a log that is small, or shared by many
// shards, is not filled by what is only convenient. What lies between is for what
// the store lacks, and for segments that are half dead.
const (
	snapshotShare = 4 // log between two snapshots
	retainShare   = 4 // log for a database that loses its tail
	trailingShare = 8 // log for followers that are a little behind
	pressedShare  = 16
)

// While the disk is short of room, nothing that is stored stays in the log: not
// for a database that might lose it, nor for followers.
const (
	pressedLogBytes     = 1 << 20 // that a snapshot must free to be worth taking, or less of a small log
	refusingLogBytes    = 64 << 10
	pressedTrailingLogs = 1 // entries may be large
)

// Pressure is how the log of the node stands to the room it has.
type Pressure struct {
	Short    bool  // let go of all that can be
	Refusing bool  // so little is left that nothing new is taken
	Budget   int64 // bytes of disk for the log; 0: not known
}

// Press tells the shards how much room the log has. It is meant to be repeated.
func (h *Host) Press(p Pressure) {
	r := room{short: p.Short, refusing: p.Refusing, share: p.Budget / int64(max(1, len(h.all())))}
	h.turns.pressure.Store(&r)
}

// room is what there is for a shard.
type room struct {
	short, refusing bool
	share           int64 // of the budget; 0: no bound
}

func (t *turns) room() room {
	if r := t.pressure.Load(); r != nil {
		return *r
	}
	return room{}
}

// bound is what of a limit fits into a part of the share.
func (r room) bound(limit, part int64) int64 {
	if r.share <= 0 {
		return limit
	}
	return min(limit, r.share/part)
}

// worthItsRoom reports whether a snapshot now would free enough of a log that is
// short of room: of what lies before the durable index, however old the latest
// snapshot is. One that was taken while the store was away freed nothing. While
// intake is refused the state need not pay any more, since without a snapshot
// there is no end to that; the blocks that the store lacks must, because a
// snapshot repeats them.
func (s *Shard) worthItsRoom() bool {
	r := s.flush.turns.room()
	if !r.short {
		return false
	}
	first, err := s.log.FirstIndex()
	if err != nil || first == 0 {
		return false
	}
	m := s.fsm.machine
	m.mu.Lock()
	durable := m.pending.durable
	m.mu.Unlock()
	waiting := s.log.BytesSince(durable)
	freed := s.log.BytesSince(first-1) - waiting
	least, cost := r.bound(min(pressedLogBytes, s.limits.SnapshotLogBytes), pressedShare), s.snapshotCost()
	if r.refusing {
		least, cost = min(least, refusingLogBytes), waiting
	}
	return freed >= max(least, cost/snapshotRatio)
}

// trail sets how many entries raft leaves behind a snapshot.
func (s *Shard) trail() {
	want := s.limits.TrailingLogs
	r := s.flush.turns.room()
	if r.short {
		want = min(want, pressedTrailingLogs)
	} else if last, err := s.log.LastIndex(); err == nil && r.share > 0 {
		for most := r.share / trailingShare; want > pressedTrailingLogs && s.log.BytesSince(last-min(want, last)) > most; {
			want /= 2
		}
	}
	if rc := s.raft.ReloadableConfig(); rc.TrailingLogs != want {
		rc.TrailingLogs = want
		if err := s.raft.ReloadConfig(rc); err != nil {
			s.logger.Warn("set how many entries stay behind a snapshot", "err", err)
		}
	}
}
