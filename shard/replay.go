package shard

import (
	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/telemetry/block"

	"github.com/sluice-iot/sluice/telemetry"
)

// Replay is the state machine of one shard without raft, disk and store: what
// judges a log again, and what stands behind the network in tests of others.
// It is not safe for concurrent use.
type Replay struct {
	machine *machine
	log     map[uint64][]byte
}

// NewReplay returns a state machine before its first entry, with the detectors'
// default parameters.
func NewReplay(id telemetry.ShardID) *Replay {
	return &Replay{machine: newMachine(id, anomaly.New(anomaly.DefaultParams())), log: map[uint64][]byte{}}
}

// Apply applies one entry; indexes ascend. The answer to a block is a Result.
func (r *Replay) Apply(index uint64, entry []byte) any {
	r.machine.events = nil
	r.log[index] = entry
	return r.machine.apply(index, 1, entry)
}

// Digest is the fingerprint of the state, the same as that of a replica which
// has applied the same log.
func (r *Replay) Digest() uint64 { return r.machine.digest() }

// Counts is the ledger.
func (r *Replay) Counts() Counts { return r.machine.counts }

// EachPending calls fn for every reading that becomes a row and is not flushed,
// in the order of the log. The arguments are valid until it returns.
func (r *Replay) EachPending(fn func(*block.Block, *block.Entry, *block.Reading)) error {
	var b block.Block
	for _, p := range r.machine.pending.blocks {
		if p.allRows() == 0 {
			continue
		}
		if err := b.Decode(r.log[p.index]); err != nil {
			return err
		}
		for i := range b.Messages {
			e := &b.Messages[i]
			for k := e.Readings.From; k < e.Readings.To; k++ {
				if !p.marks[k].drop {
					fn(&b, e, &b.Readings[k])
				}
			}
		}
	}
	return nil
}
