package faults

import (
	"strings"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// replay applies the log of a shard again, without any fault, and compares: the
// state, detectors included, and the score of every stored reading have to be
// those of the replicas that went through the fault (C9).
type replay struct {
	node     string // whose log it is
	shard    telemetry.ShardID
	machine  *shard.Replay
	replicas []replica // when they were equal
	scores   map[reading]float32
	first    uint64 // index of the first entry seen, 0 for none
	digested bool
	history  *History
	res      *Result
}

// reading names one reading of the log.
type reading struct {
	device, sensor string
	time           int64
	value          float64
}

// replays makes the replays of one node's log.
func (r *Run) replays(node string, h *History, res *Result) func(telemetry.ShardID) *replay {
	return func(id telemetry.ShardID) *replay {
		return &replay{
			node: node, shard: id, machine: shard.NewReplay(id), replicas: r.replicasSeen[uint32(id)],
			scores: map[reading]float32{}, history: h, res: res,
		}
	}
}

// committed is as far as all replicas had applied the log when they were equal.
// What a node that is no replica any more has behind its death may have been
// replaced since: of its log nothing is known to be committed.
func (p *replay) committed() uint64 {
	for _, r := range p.replicas {
		if r.node == p.node {
			return r.Applied
		}
	}
	return 0
}

// apply applies what is committed, and reports whether the entry is a block that
// took effect: one that has overtaken another is in the log and is refused. A log
// that does not begin at its beginning, because a snapshot has replaced it, says
// nothing.
func (p *replay) apply(e *raft.Log, commit uint64) (admitted bool, err error) {
	if e.Index > commit {
		return false, nil
	}
	if p.first == 0 {
		p.first = e.Index
	}
	if p.first != 1 {
		return false, nil
	}
	p.digest(e.Index - 1)
	if e.Type != raft.LogCommand {
		return false, nil
	}
	entry := append([]byte(nil), e.Data...)
	res, ok := p.machine.ApplyAt(e.Index, e.Term, entry).(shard.Result)
	admitted = ok && res.Status == shard.StatusApplied && res.Index == e.Index
	return admitted, p.machine.EachScore(e.Index, func(b *block.Block, m *block.Entry, rd *block.Reading, score float32) {
		p.scores[reading{strings.Clone(b.Devices[m.Device]), strings.Clone(b.Sensors[rd.Sensor]), m.Time, rd.Value.Float64()}] = score
	})
}

// digest compares the states once the replay is where the replicas were.
func (p *replay) digest(index uint64) {
	if p.digested || len(p.replicas) == 0 || index != p.replicas[0].Applied {
		return
	}
	p.digested = true
	if got := p.machine.Digest(); got != p.replicas[0].Digest {
		p.res.fail("C9", "shard %d at %d: the log applied again gives state %x, %s has %x", p.shard, index, got, p.replicas[0].node, p.replicas[0].Digest)
	}
}

// compare judges the stored scores of the shard's devices.
func (p *replay) compare() {
	if p.first != 1 || p.res.replayed[p.shard] {
		return
	}
	if len(p.replicas) > 0 {
		p.digest(p.replicas[0].Applied) // if that was the last entry
	}
	if p.res.replayed == nil {
		p.res.replayed = map[telemetry.ShardID]bool{}
	}
	p.res.replayed[p.shard] = true // one whole log is enough: all have the same committed entries (C4)
	wrong, compared := 0, 0
	for place, devices := range p.history.Stored {
		for device, stored := range devices {
			for _, s := range stored {
				want, ok := p.scores[reading{device, s.Sensor, s.Time.UnixMicro(), s.Value}]
				if !ok {
					continue // of another shard, or unsent, which C2 says
				}
				compared++
				if want != s.Score {
					if wrong++; wrong <= 3 {
						p.res.fail("C9", "%s of %s at %v via %s has score %v, its log applied again gives %v", s.Sensor, device, s.Time, place, s.Score, want)
					}
				}
			}
		}
	}
	p.res.Replayed += compared
}
