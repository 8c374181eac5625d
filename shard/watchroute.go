package shard

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// Maintain says that nothing of a device is an anomaly until a time, in
// microseconds of receipt; one that has passed ends a maintenance. ErrNotFound
// when the device is not known.
func (r *Router) Maintain(ctx context.Context, device string, until int64) error {
	id, err := r.shardOf(device)
	if err != nil {
		return err
	}
	_, err = r.leaderAnswer(ctx, id, append([]byte{askWatch}, maintenanceEntry(device, until)...))
	return err
}

// Normal says that an anomaly was none: it closes, and its pattern counts less
// for that device from now on. ErrNotFound when no shard lists it.
func (r *Router) Normal(ctx context.Context, alert string) error {
	home, _, ok := strings.Cut(alert, "-")
	id, err := strconv.ParseUint(home, 10, 32)
	if !ok || err != nil || id >= uint64(r.dir.Shards()) {
		return fmt.Errorf("anomaly %q: %w", alert, ErrNotFound)
	}
	_, err = r.leaderAnswer(ctx, telemetry.ShardID(id), append([]byte{askWatch}, normalEntry(alert)...))
	return err
}

// Target sets how many false alarms a device may raise in 30 days, on all its
// sensors, in every shard; it is safe to repeat.
func (r *Router) Target(ctx context.Context, perMonth float64) error {
	p := anomaly.DefaultParams()
	p.AlarmsPerDeviceMonth = perMonth
	if err := p.Validate(); err != nil {
		return fmt.Errorf("%w: %w", errInvalidPut, err)
	}
	return r.tellShards(ctx, targetEntry(perMonth))
}

// Range sets what a sensor can measure, in every shard; set false makes it
// unknown again. It is safe to repeat.
func (r *Router) Range(ctx context.Context, x Range, set bool) error {
	if set {
		if err := x.Validate(); err != nil {
			return err
		}
	}
	return r.tellShards(ctx, rangeEntry(x, set))
}

// Settings are the target and the ranges as a shard that leads here or elsewhere
// has them.
func (r *Router) Settings(ctx context.Context) (perMonth float64, ranges []Range, err error) {
	views, err := r.Status(ctx, false)
	if err != nil {
		return 0, nil, err
	}
	for _, replicas := range views {
		for i := range replicas {
			if replicas[i].Role == "leader" {
				return replicas[i].Target, replicas[i].Ranges, nil
			}
		}
	}
	return 0, nil, fmt.Errorf("no shard has a leader that answers: %w", store.ErrUnavailable)
}

// tellShards puts a watch entry into the log of every shard.
func (r *Router) tellShards(ctx context.Context, entry []byte) error {
	if _, err := r.shardOf(""); err != nil {
		return err
	}
	for id := range r.dir.Shards() {
		if _, err := r.leaderAnswer(ctx, telemetry.ShardID(id), append([]byte{askWatch}, entry...)); err != nil {
			return err
		}
	}
	return nil
}

// answerWatch proposes what Maintain or Normal of another node has encoded.
// Repeating either has no further effect.
func (s *Shard) answerWatch(ctx context.Context, entry []byte) error {
	if Kind(entry) != EntryWatch {
		return fmt.Errorf("entry of kind %d is not an operator's word", Kind(entry))
	}
	_, err := s.Call(ctx, entry)
	return err
}
