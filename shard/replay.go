package shard

import (
	"math"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
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

// Apply applies one entry, of term 1; indexes ascend. The answer to a block is a
// Result.
func (r *Replay) Apply(index uint64, entry []byte) any { return r.ApplyAt(index, 1, entry) }

// ApplyAt applies one entry of a log with its term.
func (r *Replay) ApplyAt(index, term uint64, entry []byte) any {
	r.machine.events = nil
	r.log[index] = entry
	return r.machine.apply(index, term, entry)
}

// Digest is the fingerprint of the state, the same as that of a replica which
// has applied the same log.
func (r *Replay) Digest() uint64 { return r.machine.digest() }

// Counts is the ledger.
func (r *Replay) Counts() Counts { return r.machine.counts }

// EachPending calls fn for every reading that becomes a row and is not flushed,
// in the order of the log. The arguments are valid until it returns.
func (r *Replay) EachPending(fn func(*block.Block, *block.Entry, *block.Reading)) error {
	for p := range r.machine.pending.between(0, math.MaxUint64).all() {
		if err := r.each(p, func(b *block.Block, e *block.Entry, rd *block.Reading, _ float32) { fn(b, e, rd) }); err != nil {
			return err
		}
	}
	return nil
}

// EachScore calls fn for every reading of the entry at index that became a row,
// with its score, if that entry was applied last. The arguments are valid until
// it returns.
func (r *Replay) EachScore(index uint64, fn func(*block.Block, *block.Entry, *block.Reading, float32)) error {
	blocks := r.machine.pending.blocks
	if len(blocks) == 0 || blocks[len(blocks)-1].index != index {
		return nil
	}
	return r.each(blocks[len(blocks)-1], fn)
}

func (r *Replay) each(p *pendingBlock, fn func(*block.Block, *block.Entry, *block.Reading, float32)) error {
	if p.allRows() == 0 {
		return nil
	}
	var b block.Block
	if err := b.Decode(r.log[p.index]); err != nil {
		return err
	}
	for i := range b.Messages {
		e := &b.Messages[i]
		for k := e.Readings.From; k < e.Readings.To; k++ {
			if !p.marks[k].drop {
				fn(&b, e, &b.Readings[k], p.marks[k].score)
			}
		}
	}
	return nil
}
