package meta

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// diskTick is how often the leader looks at its disk.
	diskTick = 100 * time.Millisecond
	// nearMax is how many entries a voter may be behind to be handed the leadership:
	// what one append brings. raft takes no entry while it waits for the one that is
	// to lead.
	nearMax = appendEntriesMax
)

// keepDisk gives the leadership away while the disk of the log is slow, for every
// commit would wait for it, or has damaged something. Where no other voter's disk is
// well, it stays.
func (m *Meta) keepDisk(ctx context.Context) {
	if m.deps.SlowDisk == nil {
		return
	}
	t := time.NewTicker(diskTick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if m.IsLeader() && m.deps.SlowDisk() {
			m.leaveDisk(ctx)
		}
	}
}

// leaveDisk hands the leadership to a voter that answers, has nearly all of the log
// and whose disk is not slow.
func (m *Meta) leaveDisk(ctx context.Context) {
	for _, s := range m.survey(ctx, m.Voters()) {
		if ctx.Err() != nil || !m.IsLeader() {
			return
		}
		if s.SlowDisk || s.Last+nearMax < m.raft.LastIndex() {
			continue
		}
		f := m.raft.LeadershipTransferToServer(raft.ServerID(s.Peer), raft.ServerAddress(s.Peer))
		if err := m.await(ctx, f); err != nil {
			m.logger.Debug("leadership of the meta group stays on a bad disk", "peer", s.Peer, "err", err)
			continue
		}
		m.logger.Info("leadership of the meta group leaves a bad disk", "peer", s.Peer)
		return
	}
}

func (m *Meta) slowDisk() bool { return m.deps.SlowDisk != nil && m.deps.SlowDisk() }
