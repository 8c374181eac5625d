package shard

import (
	"context"
	"errors"
	"fmt"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// ErrNotReached answers for a write that the log does not hold: it was
// acknowledged by another cluster, or by this one before it lost its data.
var ErrNotReached = errors.New("the write is not in this cluster")

// last is the index of the last entry applied, not stale.
func (s *Shard) last() (uint64, error) {
	if err := s.Verify(); err != nil {
		return 0, err
	}
	s.fsm.mu.Lock()
	defer s.fsm.mu.Unlock()
	return s.fsm.index, nil
}

// Await makes sure that what is asked after it holds writes that were
// acknowledged: those to the device's shard, or all of them when device is "". The
// leader of a shard has applied what was ever acknowledged before it answers
// anything, so that nothing is waited for but a leader; a log that does not reach
// a write cannot be the one that acknowledged it.
func (r *Router) Await(ctx context.Context, device string, writes []telemetry.Write) error {
	home := telemetry.ShardID(0)
	if device != "" {
		var err error
		if home, err = r.shardOf(device); err != nil {
			return err
		}
	}
	for _, w := range writes {
		if device != "" && w.Shard != home {
			continue
		}
		if uint32(w.Shard) >= r.dir.Shards() {
			return fmt.Errorf("shard %d of %d: %w", w.Shard, r.dir.Shards(), ErrNotReached)
		}
		b, err := r.ask(ctx, w.Shard, wire.AppendUint([]byte{askReached}, w.Index))
		if err != nil {
			return err
		}
		wr := wire.NewReader(b)
		if last, reached := wr.Uint(), wr.Bool(); wr.Err() != nil || !reached {
			return fmt.Errorf("entry %d of shard %d, whose log ends at %d: %w", w.Index, w.Shard, last, errors.Join(ErrNotReached, wr.Err()))
		}
	}
	return nil
}
