package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/sluice-iot/sluice/bench/faults/disk"
)

// All is the table of faults, in its order.
func All() []*Fault {
	return []*Fault{
		{ID: "F1a", Title: "kill -9 of a node that leads least", Bound: time.Second, Metric: restarted, Strike: killLeast},
		{ID: "F1b", Title: "kill -9 of the node that leads most", Bound: time.Second, Metric: restarted, Strike: killMost},
		{ID: "F2", Title: "kill -9 of all nodes at once", Bound: 10 * time.Second, Metric: restarted, Strike: killAll},
		{ID: "F3", Title: "power loss of one node while another is paused", Disks: true, Metric: restarted, Strike: powerLossBesidePause},
		{ID: "F4", Title: "power loss of all nodes at once, twice", Disks: true, Metric: restarted, Strike: powerLossOfAll},
		{ID: "F5", Title: "a zone cut off and killed, then back", Bound: 2 * time.Second, Zones: true, Metric: notAlive, Strike: loseZone},
		{ID: "F6a", Title: "partition: one node alone", Bound: 2 * time.Second, Zones: true, Metric: notAlive, Strike: isolate},
		{ID: "F6b", Title: "partition: two nodes do not reach each other, the third reaches both", Zones: true, Metric: lostPings, Strike: breakRing},
		{ID: "F6c", Title: "partition in one direction", Zones: true, Metric: lostPings, Strike: oneWay},
		{ID: "F7", Title: "links clogged at random, 20 % loss, 25 to 125 ms", Zones: true, Metric: "sluice_mux_round_trip_seconds", Above: 0.02, Strike: roughLinks},
		{ID: "F8", Title: "leader paused for 10 s", Metric: notAlive, Strike: pauseLeader},
		{ID: "F9", Title: "clocks 10 min ahead and behind, and jumping", Clocks: true, Strike: wrongClocks},
		{ID: "F10", Title: "disk full on one node, then freed", Disks: true, Environ: smallSegments, Metric: "sluice_wal_full", Strike: fullDisk},
		{ID: "F11", Title: "EIO on one sync of the log", Disks: true, Metric: restarted, Strike: failedSync},
		{ID: "F12", Title: "syncs of the leader's node 200 ms slower", Disks: true, Metric: "sluice_wal_fsync_duration_seconds", Above: 0.05, Strike: slowSync},
		{ID: "F13a", Title: "a flipped bit in the log of one node", Environ: smallSegments, Metric: memberChanges, Strike: damage(flipBit)},
		{ID: "F13b", Title: "a truncated log segment on one node", Environ: smallSegments, Metric: memberChanges, Strike: damage(truncateFile)},
		{ID: "F13c", Title: "a zeroed page in the log of one node", Environ: smallSegments, Metric: memberChanges, Strike: damage(zeroPage)},
		{ID: "F13d", Title: "a flipped bit in a snapshot of one node", Environ: smallSnapshots, Metric: damagedReplicas, Strike: damageSnapshot(flipBit)},
		{ID: "F13e", Title: "a truncated snapshot on one node", Environ: smallSnapshots, Metric: damagedReplicas, Strike: damageSnapshot(truncateFile)},
		{ID: "F13f", Title: "a zeroed page in a snapshot of one node", Environ: smallSnapshots, Metric: damagedReplicas, Strike: damageSnapshot(zeroPage)},
		{ID: "F14", Title: "a node's data directory deleted", Metric: memberChanges, Strike: wipe},
		{ID: "F15a", Title: "a fourth node is added", Metric: memberChanges, Strike: addNode},
		{ID: "F15b", Title: "one node of four is drained, stopped and evicted", Metric: memberChanges, Strike: removeNode},
		{ID: "F15c", Title: "a node is lost for good and replaced by a new one", Metric: memberChanges, Strike: replaceNode},
		{ID: "F16", Title: "every node stopped in order and started again, in turn", Metric: restarted, Strike: rollingRestart},
		{ID: "F17a", Title: "database killed and restarted", Database: true, Metric: "sluice_postgres_up", Strike: killDatabase},
		{ID: "F17b", Title: "database paused for 20 s", Database: true, Metric: "sluice_postgres_up", Strike: pauseDatabase},
		{ID: "F17c", Title: "connections to the database cut within COPY and commit", Database: true, Metric: "sluice_shard_flush_errors_total", Strike: cutDatabase},
		{ID: "F18", Title: "hostile clients beside honest ones", Metric: "sluice_broker_refused_total", Strike: abuse},
		{ID: "F19", Title: "every client reconnects to another node at once, three times", Metric: redelivered, Strike: scatterAll},
	}
}

// The metrics that more than one fault moves.
const (
	notAlive        = `sluice_gossip_members_count{state="`
	restarted       = "process_start_time_seconds"
	lostPings       = `sluice_gossip_pings_total{result="lost"`
	redelivered     = `sluice_broker_publishes_total{outcome="duplicate"`
	damagedReplicas = "sluice_shard_damaged_total"
	memberChanges   = "sluice_shard_member_changes_total"
)

// smallSnapshots makes every shard have snapshots within seconds, and a log that
// does not reach back behind them.
var smallSnapshots = []string{"SLUICE_WAL_SNAPSHOT_KIB=16", "SLUICE_WAL_TRAILING_ENTRIES=16"}

// smallSegments makes a log have several segments within seconds.
var smallSegments = []string{"SLUICE_WAL_SEGMENT_MIB=1"}

// away is how long a node is gone, at least.
const away = 2 * time.Second

func killLeast(ctx context.Context, r *Run) error {
	most, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	return r.killOne(ctx, (most+1)%nodesCount)
}

func killMost(ctx context.Context, r *Run) error {
	most, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	return r.killOne(ctx, most)
}

func (r *Run) killOne(ctx context.Context, node int) error {
	r.strikes()
	if err := r.kill(node); err != nil {
		return err
	}
	sleep(ctx, away+r.upTo(away))
	return r.startNodes(node)
}

func killAll(ctx context.Context, r *Run) error {
	r.strikes()
	if err := r.kill(everyNode()...); err != nil {
		return err
	}
	return r.startNodes(everyNode()...)
}

func everyNode() (out []int) {
	for i := range nodesCount {
		out = append(out, i)
	}
	return out
}

func powerLossBesidePause(ctx context.Context, r *Run) error {
	victim := r.rng.IntN(nodesCount)
	paused := (victim + 1) % nodesCount
	if err := r.Cluster.Nodes()[paused].Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	sleep(ctx, 500*time.Millisecond) // the other two go on acknowledging
	r.strikes()
	err := r.powerLoss(nil, victim)
	err = errors.Join(err, r.startNodes(victim))
	sleep(ctx, r.upTo(away))
	return errors.Join(err, r.Cluster.Nodes()[paused].Signal(syscall.SIGCONT))
}

// powerLossOfAll strikes twice: once everything that was not synced is gone,
// once any of it may have survived.
func powerLossOfAll(ctx context.Context, r *Run) error {
	for _, rng := range []*rand.Rand{nil, r.rng} {
		r.strikes()
		if err := r.powerLoss(rng, everyNode()...); err != nil {
			return err
		}
		if err := r.startNodes(everyNode()...); err != nil {
			return err
		}
		if err := r.ready(ctx); err != nil {
			return err
		}
		sleep(ctx, away)
	}
	return nil
}

const pauseLong = 10 * time.Second

func pauseLeader(ctx context.Context, r *Run) error {
	most, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	n := r.Cluster.Nodes()[most]
	r.strikes()
	if err := n.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	sleep(ctx, pauseLong)
	// What waits in its sockets is read before it hears of its successor.
	r.readers.crowd(ctx, n, r.fleet.mqtt, crowdMax)
	sleep(ctx, time.Second)
	return n.Signal(syscall.SIGCONT)
}

// crowdMax is how many reads wait in a paused leader.
const crowdMax = 200

func failedSync(ctx context.Context, r *Run) error {
	victim := r.rng.IntN(nodesCount)
	r.strikes()
	r.Disks[victim].Inject(disk.Fault{Op: disk.OpSync, Suffix: ".wal", Errno: syscall.EIO, Count: 1})
	began := time.Now()
	if err := r.ended(ctx, victim, time.Minute); err != nil {
		return err
	}
	r.note = fmt.Sprintf("the process ended after %v", time.Since(began).Round(10*time.Millisecond))
	return r.startNodes(victim)
}

const (
	slowFor = 10 * time.Second // long enough for a leader to be given up
	slowP99 = time.Second      // of the acknowledgements meanwhile
)

func slowSync(ctx context.Context, r *Run) error {
	most, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	r.strikes()
	r.Disks[most].Inject(disk.Fault{Op: disk.OpSync, Delay: 200 * time.Millisecond})
	began := time.Now()
	sleep(ctx, slowFor)
	leads := 0
	st, err := r.status(ctx)
	for _, s := range st.Shards {
		if string(s.Leader) == r.Cluster.Nodes()[most].ID {
			leads++
		}
	}
	r.Disks[most].Heal()
	p99 := r.fleet.probes.latency(began, time.Now(), 0.99)
	r.note = fmt.Sprintf("p99 %v, the slow node led %d of %d shards at the end", p99.Round(time.Millisecond), leads, len(st.Shards))
	switch {
	case err != nil:
		return err
	case leads > 0:
		return fmt.Errorf("the node whose disk is slow leads %d shards after %v", leads, slowFor)
	case p99 > slowP99:
		return fmt.Errorf("p99 of acknowledgements is %v while a disk is slow, %v is allowed", p99, slowP99)
	}
	return nil
}

func killDatabase(ctx context.Context, r *Run) error {
	r.strikes()
	if err := r.db.server.Kill(); err != nil {
		return err
	}
	sleep(ctx, away+r.upTo(away))
	if err := r.db.server.Restart(); err != nil {
		return err
	}
	sleep(ctx, away)
	return r.db.server.Restart() // in order this time
}

func pauseDatabase(ctx context.Context, r *Run) error {
	r.strikes()
	r.db.server.Pause()
	sleep(ctx, 20*time.Second)
	r.db.server.Resume()
	return nil
}

// rollingRestart is an upgrade without the upgrade.
func rollingRestart(ctx context.Context, r *Run) error {
	r.strikes()
	for _, n := range r.Cluster.Nodes() {
		if err := n.Terminate(); err != nil {
			return err
		}
		if err := n.Start(); err != nil {
			return err
		}
		ready, cancel := context.WithTimeout(ctx, readyMax)
		err := n.WaitReady(ready)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// scatterAll cuts every client's connection at once, three times.
func scatterAll(ctx context.Context, r *Run) error {
	r.strikes()
	for range 3 {
		for _, s := range r.fleet.mqtt {
			s.Switch()
		}
		sleep(ctx, time.Second)
	}
	return nil
}

const (
	cutsWanted = 12              // COPYs that are cut
	cutsMax    = 3 * time.Minute // until they are
)

func cutDatabase(ctx context.Context, r *Run) error {
	r.strikes()
	r.db.proxy.arm(cutsWanted)
	defer func() { r.note = fmt.Sprintf("%d connections cut", r.db.proxy.cut()) }()
	for end := time.Now().Add(cutsMax); r.db.proxy.cut() < cutsWanted; sleep(ctx, 50*time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("only %d of %d connections were cut in the middle of COPY within %v", r.db.proxy.cut(), cutsWanted, cutsMax)
		}
	}
	return nil
}
