package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/shard"
)

const (
	flushedMax  = 4 * time.Minute // until the backlog of a fault is in the store
	readMax     = 5 * time.Minute // of everything through one node
	digestsMax  = 3 * time.Minute // until all replicas are at one index
	brokenMax   = 5 * time.Second // for any of these once the cluster has not come back
	resourceMax = 2 * time.Minute // until a node has given back what the fault took
)

// patience is how long a check may wait for a cluster that is as it should be.
func (r *Run) patience(most time.Duration) time.Time {
	if r.broken {
		most = brokenMax
	}
	return time.Now().Add(most)
}

// judge ends the load and checks C1 to C5 and C8; C7 was measured before.
func (r *Run) judge(ctx context.Context, res *Result) {
	r.fleet.stop()
	orders := r.orders.stop(ctx, r.patience(commandArrive))
	r.endReads()
	for _, err := range r.readers.stale {
		res.fail("C6", "%v", err)
	}
	if r.readers.reads == 0 {
		res.fail("C6", "no read was answered")
	}
	h := &History{Seed: res.Seed, Fault: res.ID, Registers: r.ops.ops, Commands: orders, Clients: r.fleet.histories(), Stored: map[string]map[string][]bench.Stored{}}
	r.history(ctx, res, h)
	r.digests(ctx, res)
	r.givenBack(ctx, res)
	r.logs(ctx, res, h)
	h.judge(res)
	res.kept = h
}

// history reads everything through every node, and the database if there is one.
func (r *Run) history(ctx context.Context, res *Result, h *History) {
	if err := r.flushed(ctx); err != nil {
		res.fail("C1", "%v", err)
	}
	ctx, cancel := context.WithDeadline(ctx, r.patience(readMax))
	defer cancel()
	for _, n := range r.nodes() {
		if !n.Running() {
			continue
		}
		stored, err := readAll(ctx, n, h.Clients)
		if err != nil {
			res.fail("C1", "read through %s: %v", n.ID, err)
			continue
		}
		h.Stored[n.ID] = stored
	}
	if len(h.Stored) == 0 {
		res.fail("C1", "nothing could be read")
	}
	if r.db != nil {
		stored, err := r.db.stored(ctx, h.Clients)
		if err != nil {
			res.fail("C1", "%v", err)
		}
		h.Stored["database"] = stored
	}
	r.ledger(ctx, res)
}

// flushed waits until no message is pending.
func (r *Run) flushed(ctx context.Context) error {
	var last error
	for end := r.patience(flushedMax); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
		cl, err := r.anyNode()
		if err != nil {
			return err
		}
		l, err := cl.Ledger(ctx)
		cl.Close()
		if err == nil && l.Totals.Pending == 0 {
			return nil
		}
		last = fmt.Errorf("%d messages are not flushed after %v: %w", l.Totals.Pending, flushedMax, err)
		if err == nil {
			last = fmt.Errorf("%d messages are not flushed after %v", l.Totals.Pending, flushedMax)
		}
	}
	return last
}

func (r *Run) anyNode() (*client.Client, error) {
	for _, n := range r.nodes() {
		if n.Running() {
			return n.Client()
		}
	}
	return nil, fmt.Errorf("no node runs")
}

func readAll(ctx context.Context, n *devcluster.Node, devices []bench.History) (map[string][]bench.Stored, error) {
	cl, err := n.Client()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	out := map[string][]bench.Stored{}
	for _, d := range devices {
		for rd, err := range cl.Readings(ctx, client.ReadingsQuery{Device: d.Device}) {
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.Device, err)
			}
			out[d.Device] = append(out[d.Device], bench.Stored{Time: time.UnixMicro(int64(rd.Time)).UTC(), Sensor: rd.Sensor, Value: float64(rd.Value), Score: rd.Score})
		}
	}
	return out, nil
}

// ledger compares the cluster's own books with the clients'.
func (r *Run) ledger(ctx context.Context, res *Result) {
	cl, err := r.anyNode()
	if err != nil {
		res.fail("C1", "%v", err)
		return
	}
	defer cl.Close()
	l, err := cl.Ledger(ctx)
	if err != nil {
		res.fail("C1", "ledger: %v", err)
		return
	}
	t := l.Totals
	if t.Received != t.Refused+t.Quarantined+t.Duplicate+t.Applied || t.Applied != t.Flushed+t.Pending {
		res.fail("C1", "the ledger does not add up: %+v", t)
	}
	if acked := uint64(r.fleet.acked()); t.Applied < acked {
		res.fail("C1", "the ledger has %d messages applied, the clients have %d acknowledged", t.Applied, acked)
	}
}

// digests compares the states of all replicas of every shard at one index (C5).
func (r *Run) digests(ctx context.Context, res *Result) {
	var why string
	for end := r.patience(digestsMax); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 300*time.Millisecond) {
		shards := map[uint32][]replica{}
		running := 0
		why = ""
		for _, n := range r.nodes() {
			if !n.Running() {
				continue
			}
			running++
			list, err := r.replicas(ctx, n)
			if err != nil {
				why = err.Error()
				break
			}
			for _, s := range list {
				shards[uint32(s.Shard)] = append(shards[uint32(s.Shard)], replica{n.ID, s})
			}
		}
		if why == "" {
			why = compareDigests(shards, running)
		}
		if why == "" {
			r.replicasSeen = shards
			r.mismatches(ctx, res)
			return
		}
		if strings.HasPrefix(why, divergence) {
			break
		}
	}
	res.fail("C5", "%s", why)
}

type replica struct {
	node string
	shard.ReplicaStatus
}

// divergence begins the one answer that waiting cannot change.
const divergence = "states differ: "

// compareDigests is empty when all replicas of every shard are at one index with
// one digest, and says what is missing otherwise.
func compareDigests(shards map[uint32][]replica, running int) string {
	if len(shards) == 0 {
		return "no replica answers"
	}
	behind := ""
	for id, list := range shards {
		if len(list) != min(running, nodesCount) {
			behind = fmt.Sprintf("shard %d has %d replicas on %d nodes", id, len(list), running)
		}
		for _, p := range list[1:] {
			first := list[0]
			switch {
			case p.Applied != first.Applied:
				behind = fmt.Sprintf("shard %d: %s has applied %d, %s %d", id, first.node, first.Applied, p.node, p.Applied)
			case p.Digest != first.Digest:
				return fmt.Sprintf("%sshard %d at %d: %s has %x, %s %x", divergence, id, p.Applied, first.node, first.Digest, p.node, p.Digest)
			}
		}
	}
	return behind
}

// replicas asks a node's debug listener, which is on its own loopback.
func (r *Run) replicas(ctx context.Context, n *devcluster.Node) ([]shard.ReplicaStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, statusMax)
	defer cancel()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if r.Zones != nil {
		zone := slices.Index(r.Cluster.Nodes(), n)
		hc.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return r.Zones.Dial(ctx, zone, network, addr)
		}}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Debug+"/debug/replicas", nil)
	if err != nil {
		return nil, err
	}
	res, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // decoded below
	var out []shard.ReplicaStatus
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		return nil, fmt.Errorf("digests of %s: status %d: %w", n.ID, res.StatusCode, err)
	}
	return out, nil
}

// mismatches asks the nodes whether they have seen rows that differ.
func (r *Run) mismatches(ctx context.Context, res *Result) {
	for _, n := range r.nodes() {
		if !n.Running() {
			continue
		}
		m, err := metricsOf(ctx, n)
		if err != nil {
			res.fail("C5", "%v", err)
			continue
		}
		if got := m["sluice_shard_digest_mismatches_total"]; got != 0 {
			res.fail("C5", "%s: rows of %v ranges differ from the leader's", n.ID, got)
		}
	}
}

// metricsOf sums the samples of every metric of a node.
func metricsOf(ctx context.Context, n *devcluster.Node) (map[string]float64, error) {
	series, err := seriesOf(ctx, n)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for id, v := range series {
		name, _, _ := strings.Cut(id, "{")
		out[name] += v
	}
	return out, nil
}

// resources is what a node holds.
type resources struct {
	node                     string
	goroutines, files, bytes float64
}

// What a node may hold more than before the fault: files of its store that are
// kept open, connections that are just being closed, caches that fill.
const (
	goroutinesMore = 60
	filesMore      = 60
	bytesMore      = 256 << 20
)

// exceeds reports whether a node holds clearly more than it did.
func (n *resources) exceeds(b *resources) bool {
	return n.goroutines > b.goroutines+goroutinesMore || n.files > b.files+filesMore || n.bytes > b.bytes+bytesMore
}

func (r *Run) resources(ctx context.Context) ([]resources, error) {
	var out []resources
	for _, n := range r.nodes() {
		if !n.Running() {
			continue
		}
		m, err := metricsOf(ctx, n)
		if err != nil {
			return nil, err
		}
		out = append(out, resources{n.ID, m["go_goroutines"], m["process_open_fds"], m["process_resident_memory_bytes"]})
	}
	return out, nil
}

// givenBack waits until every node holds about what it held before (C8).
func (r *Run) givenBack(ctx context.Context, res *Result) {
	before := map[string]resources{}
	for _, b := range r.first {
		before[b.node] = b
	}
	var why string
	for end := r.patience(resourceMax); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 500*time.Millisecond) {
		now, err := r.resources(ctx)
		if err != nil {
			why = err.Error()
			continue
		}
		why = ""
		for _, n := range now {
			b, known := before[n.node]
			if !known {
				continue // it has joined meanwhile
			}
			if n.exceeds(&b) {
				why = fmt.Sprintf("%s holds %+v, before the fault %+v", n.node, n, b)
			}
		}
		if why == "" {
			return
		}
	}
	res.fail("C8", "%s", why)
}

// logs stops the cluster, has every log verified by the program itself, and
// takes the order of entries from them (C4).
func (r *Run) logs(ctx context.Context, res *Result, h *History) {
	r.killBroken()
	if err := r.Cluster.Stop(ctx); err != nil {
		res.fail("C8", "stop cluster: %v", err)
	}
	whole := false
	for i, n := range r.Cluster.Nodes() {
		if out, err := exec.CommandContext(ctx, r.cfg.Binary, "wal", "verify", n.Data).CombinedOutput(); err != nil {
			res.fail("C4", "log of %s: %v: %s", n.ID, err, bytes.TrimSpace(out))
			continue
		}
		data := n.Data
		if r.Disks != nil {
			data = r.Disks[i].Root()
		}
		entries, err := readLog(data, shardsCount, r.replays(n.ID, h, res))
		if err != nil {
			res.fail("C4", "log of %s: %v", n.ID, err)
			continue
		}
		h.Logs = append(h.Logs, Log{Node: n.ID, Shards: entries})
		whole = whole || slices.ContainsFunc(entries, func(s ShardLog) bool { return s.First == 1 && len(s.Devices) > 0 })
	}
	if whole && res.Replayed == 0 && !r.broken {
		res.fail("C9", "no score was compared with those of the log applied again")
	}
}
