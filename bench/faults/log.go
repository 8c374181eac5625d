package faults

import (
	"fmt"
	"hash/fnv"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
	"github.com/sluice-iot/sluice/wal"
)

// Log is what the log of a node holds of every shard.
type Log struct {
	Node   string
	Shards []ShardLog
}

// ShardLog is the part of one shard, in log order.
type ShardLog struct {
	Commit  uint64 // entries above it may be replaced
	First   uint64
	Hashes  []uint64            // of term and data of entry First, First+1, ...
	Devices map[string][]uint64 // sequence numbers of a device's messages in blocks that took effect; none of a log without its beginning
}

// readLog reads the log of a stopped node and applies it again.
func readLog(data string, shards int, again func(telemetry.ShardID) *replay) ([]ShardLog, error) {
	log, err := wal.Open(slog.New(slog.DiscardHandler), nil, wal.Config{Dir: filepath.Join(data, "wal"), ScrubBytesPerSecond: -1})
	if err != nil {
		return nil, err
	}
	var out []ShardLog
	for id := range shards {
		replay := again(telemetry.ShardID(id))
		s, err := readShard(log.Group(shard.GroupOf(telemetry.ShardID(id))), replay)
		if err != nil {
			return nil, fmt.Errorf("shard %d: %w", id, err)
		}
		replay.compare()
		out = append(out, s)
	}
	return out, log.Close()
}

func readShard(g *wal.Group, again *replay) (ShardLog, error) {
	s := ShardLog{Devices: map[string][]uint64{}}
	first, last := g.Retained()
	s.First = first
	var err error
	if s.Commit, err = g.GetCommitIndex(); err != nil {
		return s, err
	}
	s.Commit = max(s.Commit, again.committed()) // raft tells the log nothing unless it is to restore from it
	var b block.Block
	for i := first; i <= last && last > 0; i++ {
		var e raft.Log
		if err := g.GetLog(i, &e); err != nil {
			return s, err
		}
		h := fnv.New64a()
		fmt.Fprintf(h, "%d %d ", e.Term, e.Type)
		_, _ = h.Write(e.Data) // a hash takes everything
		s.Hashes = append(s.Hashes, h.Sum64())
		admitted, err := again.apply(&e, s.Commit)
		if err != nil {
			return s, fmt.Errorf("apply entry %d again: %w", i, err)
		}
		if !admitted {
			continue
		}
		if err := b.Decode(e.Data); err != nil {
			return s, fmt.Errorf("decode entry %d: %w", i, err)
		}
		for m := range b.Messages {
			device, seq := sequenceOf(&b, &b.Messages[m])
			s.Devices[device] = append(s.Devices[device], seq)
		}
	}
	return s, nil
}

// sequenceOf tells which message of which device an entry of a block is.
func sequenceOf(b *block.Block, e *block.Entry) (string, uint64) {
	h := bench.History{NoTime: e.NoTime}
	st := bench.Stored{Time: time.UnixMicro(e.Time).UTC()}
	for _, rd := range b.ReadingsOf(e) {
		st.Value = rd.Value.Float64()
	}
	seq, _ := h.Sequence(st) // what was never sent is found by C2
	return string(append([]byte(nil), b.Devices[e.Device]...)), seq
}
