package shard

import (
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/session"
)

// fsm is the machine as hashicorp/raft sees it.
type fsm struct {
	*machine
	logs     raft.LogStore                  // where the data of pending blocks can be read again
	applied  func([]Event, session.Effects) // after every batch, not under mu
	restored func(index uint64)             // after every restore, under mu
	started  atomic.Bool                    // Restore may be given a leader's snapshot, see snapshotStore
	sizes    snapshotSizes
	dir      string // for what a restore has no memory for; "": it keeps everything in memory
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM: one lock and one hand-over of events
// for a batch of entries.
func (f *fsm) ApplyBatch(ls []*raft.Log) []any {
	out := make([]any, len(ls))
	f.mu.Lock()
	for i, l := range ls {
		if l.Type == raft.LogCommand {
			out[i] = f.apply(l.Index, l.Term, l.Data)
		} else {
			f.index, f.term = l.Index, l.Term
		}
	}
	events := f.takeEvents()
	effects := f.sessions.TakeEffects()
	f.mu.Unlock()
	f.applied(events, effects)
	return out
}
