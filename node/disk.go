package node

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/backlog"
	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// backlogTick is how often the log's growth and the disk are looked at. At
// 100 MB/s a tick is a hundredth of the tenth that is kept back on a disk of
// 100 GB.
const backlogTick = time.Second

// flushesInWindow is how many flush intervals the growth of the backlog is taken
// over: it rises and falls with each.
const flushesInWindow = 3

func (n *node) openMeter() (err error) {
	n.meter, err = backlog.New(n.registry, backlog.Config{
		BytesMax: int64(n.cfg.WAL.MaxMiB) << 20, Window: max(time.Minute, flushesInWindow*n.cfg.Flush.Interval),
	})
	return err
}

// watchBacklog measures until ctx ends, and says when intake stops and goes on.
func (n *node) watchBacklog(ctx context.Context) {
	tick := time.NewTicker(backlogTick)
	defer tick.Stop()
	before := n.meter.State().Level
	for {
		waiting, u := n.host.Backlog(), n.log.Usage()
		free := backlog.Free(filepath.Join(n.cfg.Node.Data, "wal"))
		if free >= 0 {
			free += u.Bytes - u.InUse // empty files are used first
		}
		s := n.meter.Step(time.Now(), backlog.Sample{
			Log: u.InUse + waiting.Spilled, Free: free, Waiting: waiting.Bytes, Messages: waiting.Messages,
		})
		n.host.Press(shard.Pressure{Short: s.Level != backlog.OK, Refusing: s.Level == backlog.Refuse, Budget: s.Budget})
		n.log.Press(s.Level != backlog.OK)
		if s.Level != before {
			text := map[backlog.Level]string{
				backlog.OK: "the log has room again", backlog.Alarm: "the log takes 80 % of its disk budget or more",
				backlog.Refuse: "the log takes 90 % of its disk budget: intake is refused",
			}[s.Level]
			n.logger.Warn(text, "bytes", s.Used, "budget", s.Budget, "backlog_messages", s.Messages)
			before = s.Level
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// noRoom says why nothing new is taken, "" when it is.
func (n *node) noRoom() string {
	switch {
	case n.log.Full():
		return "the node's disk has no room for the log"
	case n.meter.Refusing():
		return "the node's log takes 90 % of its disk budget: bring the store back or give it more room"
	}
	return ""
}

func (n *node) serveBacklog() {
	n.mux.Handle(frameBacklog, func(_ string, _ uint32, _ []byte, reply func([]byte, error)) {
		reply(json.Marshal(n.disk()))
	})
}

// diskState is what a node says of its disk.
type diskState struct {
	backlog.State
	Damages []api.Damage `json:"damages,omitempty"` // found since the process started
}

func (n *node) disk() diskState { return diskState{n.meter.State(), n.sys.found.list()} }

// disks asks every node; one that does not answer in time is left out.
func (n *node) disks(ctx context.Context) map[telemetry.NodeID]diskState {
	ctx, cancel := context.WithTimeout(ctx, refusedAskMax)
	defer cancel()
	out := map[telemetry.NodeID]diskState{n.identity.Node(): n.disk()}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, peer := range (directory{n.meta}).Peers() {
		id, _, err := cluster.SplitPeer(peer)
		if err != nil || peer == n.identity.Peer() || !n.mux.Connected(peer) {
			continue
		}
		wg.Go(func() {
			b, err := n.mux.Call(ctx, peer, frameBacklog, 0, nil)
			var s diskState
			if err == nil {
				err = json.Unmarshal(b, &s)
			}
			if err != nil {
				n.logger.Debug("disk of a node not known", "peer", peer, "err", err)
				return
			}
			mu.Lock()
			out[id] = s
			mu.Unlock()
		})
	}
	wg.Wait()
	return out
}

// addDisks shows every node's backlog and what it has found damaged, with an alarm for those that run out of
// room.
func (b *backend) addDisks(ctx context.Context, st *meta.State, out *api.Status) {
	if !st.Initialized() {
		for i := range out.Nodes { // a damaged node that waits knows of nobody else
			if out.Nodes[i].ID == b.node.identity.Node() {
				out.Nodes[i].Damages = b.node.sys.found.list()
			}
		}
		return
	}
	states := b.node.disks(ctx)
	for i := range out.Nodes {
		id := out.Nodes[i].ID
		s, ok := states[id]
		if !ok {
			continue
		}
		out.Nodes[i].Backlog, out.Nodes[i].Damages = &s.State, s.Damages
		if s.Level != backlog.OK {
			out.Alarms = append(out.Alarms, backlogAlarm(id, &s.State))
		}
	}
}

func backlogAlarm(id telemetry.NodeID, s *backlog.State) string {
	text := fmt.Sprintf("the log of %s takes %.0f %% of its disk budget", id, 100*s.Share())
	if s.Level == backlog.Refuse {
		text += ": it refuses what is new"
	}
	if s.HoursLeft >= 0 {
		text += fmt.Sprintf(", %s left at the present rate", backlog.Hours(s.HoursLeft))
	}
	return text
}
