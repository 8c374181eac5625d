package shard

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/internal/serverid"
	"github.com/sluice-iot/sluice/telemetry"
)

// A replica that begins anew, with an empty log, is its next incarnation, and with
// it another server of its group: it has voted for nobody and acknowledged nothing.
// To raft it is a server that comes for the first time, and the one before is one
// that has died for good. Nothing that was meant for that one reaches it
// (mux.GroupAs), so that a candidate who has not heard of the change counts on
// nobody. The number goes up in the record of the retirement, before anything is
// removed (retire.go), and lies in the log beside term and vote.
//
// The leader compares what its group's configuration says with what the replicas
// say of themselves: a member of which a later incarnation exists, or will as soon
// as this one may begin anew, is removed; the one that is there is added.

// keyIncarnation is the number in the stable store; none is the first.
var keyIncarnation = []byte("Incarnation")

// goneEvery is how often a replica that is not the member of its group that it was
// says so.
const goneEvery = time.Second

// incarnationOf reads which incarnation the replica of a log is.
func incarnationOf(log Log) (uint32, error) {
	n, err := log.GetUint64(keyIncarnation)
	if err == nil && n > 1<<32-1 {
		err = fmt.Errorf("%d is none", n)
	}
	return max(uint32(n), serverid.First), err
}

// replicaOf is a peer's replica of a shard, whatever its incarnation.
type replicaOf struct {
	shard telemetry.ShardID
	peer  string
}

// goneHere lists the replicas of which an incarnation is gone, and below which: what
// is broken will not come back as it is, and what has begun anew may not be known.
func (h *Host) goneHere() map[telemetry.ShardID]uint32 {
	out := map[telemetry.ShardID]uint32{}
	for _, s := range h.all() {
		n := serverid.Incarnation(s.server)
		if n == serverid.First {
			continue
		}
		if _, member := s.member(); !member {
			out[s.id] = n
		}
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	for id, b := range h.brokens {
		out[id] = b.incarnation + 1
	}
	return out
}

// reportGone tells it to the shards' leaders.
func (h *Host) reportGone(ctx context.Context, peers Peers) {
	for id, below := range h.goneHere() {
		ctx, cancel := context.WithTimeout(ctx, memberAskMax)
		if err := peers.Rebuild(ctx, id, h.cfg.Self, below); err != nil {
			h.logger.Debug("leader of a replica that begins anew not reached", "shard", id, "err", err)
		}
		cancel()
	}
}

// hearGone notes that a peer's replica will not come back as any incarnation below.
// That stays true, so it is kept; there are as many as replicas have begun anew.
func (h *Host) hearGone(id telemetry.ShardID, peer string, below uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := replicaOf{id, peer}
	h.gone[key] = max(h.gone[key], below)
}

// goneBelow is the latest that was heard of it.
func (h *Host) goneBelow(id telemetry.ShardID, peer string) uint32 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.gone[replicaOf{id, peer}]
}
