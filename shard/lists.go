package shard

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// everyShard asks all nodes for their shards' part of a list until every shard
// has answered exactly once.
func (r *Router) everyShard(ctx context.Context, ask byte, q listQuestion) ([]listAnswer, error) {
	want := int(r.dir.Shards())
	if want == 0 {
		return nil, fmt.Errorf("the cluster is not initialised: %w", store.ErrUnavailable)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	body = append([]byte{ask}, body...)
	for {
		parts := r.everyNode(ctx, body)
		seen := map[telemetry.ShardID]bool{}
		var out []listAnswer
		for _, b := range parts {
			var a listAnswer
			if err := json.Unmarshal(b, &a); err != nil {
				return nil, fmt.Errorf("decode answer: %w", err)
			}
			for _, id := range a.Shards {
				seen[id] = true
			}
			out = append(out, a)
		}
		total := 0
		for _, a := range out {
			total += len(a.Shards)
		}
		if len(seen) == want && total == want {
			return out, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("only %d of %d shards have a leader that answers: %w", len(seen), want, store.ErrUnavailable)
		case <-time.After(routeRetry):
		}
	}
}

// everyNode puts one question to all nodes that can be reached.
func (r *Router) everyNode(ctx context.Context, question []byte) map[string][]byte {
	var mu sync.Mutex
	out := map[string][]byte{}
	var wg sync.WaitGroup
	for _, p := range r.dir.Peers() {
		wg.Go(func() {
			b, err := r.askNode(ctx, p, question)
			if err != nil {
				return // who does not answer is missing from the map
			}
			mu.Lock()
			out[p] = b
			mu.Unlock()
		})
	}
	wg.Wait()
	return out
}

// askNodeMax bounds the wait for one node, so that a dead one does not make a
// question about the living ones slow.
const askNodeMax = 2 * time.Second

func (r *Router) askNode(ctx context.Context, peer string, question []byte) ([]byte, error) {
	if peer == r.host.cfg.Self {
		return readAnswer(0, r.host.Answer(ctx, 0, question))
	}
	if !r.caller.Connected(peer) {
		return nil, fmt.Errorf("%s is not connected: %w", peer, store.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, askNodeMax)
	defer cancel()
	b, err := r.caller.Ask(ctx, peer, 0, question)
	if err != nil {
		return nil, err
	}
	return readAnswer(0, b)
}

// Devices lists devices of all shards in ascending order: those that where (an
// expression of package fleet that parses, or "") selects at the time now.
func (r *Router) Devices(ctx context.Context, after string, limit int, where string, now int64) ([]Device, error) {
	parts, err := r.everyShard(ctx, askDevices, listQuestion{After: after, Limit: limit, Where: where, Now: now})
	var out []Device
	for _, p := range parts {
		out = append(out, p.Devices...)
	}
	slices.SortFunc(out, func(a, b Device) int { return strings.Compare(a.ID, b.ID) })
	return out[:within(limit, len(out))], err
}

// Anomalies lists anomalies of all shards, newest first.
func (r *Router) Anomalies(ctx context.Context, q AnomalyFilter) ([]telemetry.Anomaly, error) {
	parts, err := r.everyShard(ctx, askAnomalies, listQuestion{Anomaly: q})
	var out []telemetry.Anomaly
	for _, p := range parts {
		out = append(out, p.Anomalies...)
	}
	slices.SortFunc(out, func(a, b telemetry.Anomaly) int { return newestFirst(a.Opened, a.ID, b.Opened, b.ID) })
	out = MergeWaves(out)
	return out[:within(q.Limit, len(out))], err
}

// Quarantined lists the quarantine of every shard.
func (r *Router) Quarantined(ctx context.Context) (map[telemetry.ShardID][]Quarantined, error) {
	parts, err := r.everyShard(ctx, askQuarantine, listQuestion{})
	out := map[telemetry.ShardID][]Quarantined{}
	for _, p := range parts {
		for id, items := range p.Quarantine {
			out[id] = items
		}
	}
	return out, err
}

// Counts is the ledger of every shard.
func (r *Router) Counts(ctx context.Context) (map[telemetry.ShardID]Counts, error) {
	parts, err := r.everyShard(ctx, askCounts, listQuestion{})
	out := map[telemetry.ShardID]Counts{}
	for _, p := range parts {
		for id, c := range p.Counts {
			out[id] = c
		}
	}
	return out, err
}

// Status is what every node that answers says of its replicas, by peer id.
func (r *Router) Status(ctx context.Context, digests bool) (map[string][]ReplicaStatus, error) {
	ask := []byte{askStatus}
	if digests {
		ask[0] = askDigests
	}
	out := map[string][]ReplicaStatus{}
	for p, b := range r.everyNode(ctx, ask) {
		var st []ReplicaStatus
		if err := json.Unmarshal(b, &st); err != nil {
			return nil, fmt.Errorf("decode status of %s: %w", p, err)
		}
		out[p] = st
	}
	return out, nil
}

// Leaders implements Peers.
func (r *Router) Leaders(ctx context.Context, peer string, shards []telemetry.ShardID) (map[telemetry.ShardID]string, error) {
	q := wire.AppendUint([]byte{askLeaders}, uint64(len(shards)))
	for _, id := range shards {
		q = wire.AppendUint(q, uint64(id))
	}
	b, err := r.caller.Ask(ctx, peer, 0, q)
	if err != nil {
		return nil, err
	}
	if b, err = readAnswer(0, b); err != nil {
		return nil, err
	}
	wr := wire.NewReader(b)
	out := map[telemetry.ShardID]string{}
	for wr.Len() > 0 && wr.Err() == nil {
		id := telemetry.ShardID(wr.Uint())
		out[id] = wr.String()
	}
	return out, wr.Err()
}

// Member implements Peers.
func (r *Router) Member(ctx context.Context, peer string, shard telemetry.ShardID, admit bool) (Member, error) {
	q := []byte{askMember, 0}
	if admit {
		q[1] = 1
	}
	var m Member
	b, err := r.caller.Ask(ctx, peer, GroupOf(shard), q)
	if err != nil {
		return m, err
	}
	if b, err = readAnswer(shard, b); err != nil {
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}

// Rebuild implements Peers.
func (r *Router) Rebuild(ctx context.Context, shard telemetry.ShardID, peer string, below uint32) error {
	_, err := r.ask(ctx, shard, wire.AppendString(wire.AppendUint([]byte{askRebuild}, uint64(below)), peer))
	return err
}
