package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/cluster/gossip"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/ingest"
	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// intake is the way into the log that MQTT and HTTP share. It exists before the
// cluster does: until then a publish has no known outcome.
type intake struct {
	noRoom   func() string // why nothing new is taken, "" when it is: refuse before anything is proposed
	refused  atomic.Uint64
	pipeline atomic.Pointer[ingest.Pipeline]
}

// Publish implements broker.Ingest and api.Ingestor.
func (i *intake) Publish(p *telemetry.Publish, done func(telemetry.Result)) {
	if reason := i.noRoom(); reason != "" {
		i.refused.Add(1)
		done(telemetry.Result{Refused: 1, Refusal: telemetry.RefusalQuota, Reason: reason})
		return
	}
	if pl := i.pipeline.Load(); pl != nil {
		pl.Publish(p, done)
		return
	}
	done(telemetry.Result{Unknown: 1, Reason: "the node is not part of an initialised cluster yet"})
}

// pacedIntake is an intake whose pipeline has a target for commits. Without one nothing
// is asked and counted for each publish.
type pacedIntake struct{ *intake }

// Allowance implements broker.Pacer.
func (i pacedIntake) Allowance() int64 {
	if pl := i.pipeline.Load(); pl != nil {
		return pl.Allowance()
	}
	return math.MaxInt64 // nothing is kept here
}

// backend answers the API for the whole cluster.
type backend struct {
	node    *node
	storeID string
}

// ClusterID implements api.Cluster.
func (b *backend) ClusterID() string { return b.node.identity.ClusterID() }

// Status implements api.Cluster.
func (b *backend) Status(ctx context.Context) (api.Status, error) {
	st := b.node.meta.State()
	out := api.Status{ClusterID: st.ClusterID, Node: b.node.identity.Node(), Version: b.node.version, Store: b.storeID, Nodes: b.nodes(st), Shards: []api.Shard{}}
	if out.ClusterID == "" {
		out.ClusterID = b.node.identity.ClusterID() // started again, and not caught up yet
	}
	var zones []placement.Node
	for _, n := range st.Nodes {
		zones = append(zones, placement.Node{ID: n.ID, Zone: n.Zone})
	}
	out.ZoneSafe = placement.ZoneSafe(st.Table, zones)
	views, err := b.node.router.Status(ctx, false)
	if err != nil {
		return out, err
	}
	for id, p := range st.Table {
		out.Shards = append(out.Shards, shardStatus(st, telemetry.ShardID(id), p, views))
	}
	out.Moves = movesOf(st)
	out.Alarms = append(alarms(&out, st), b.node.troubles()...)
	for _, replicas := range views {
		for i := range replicas {
			if replicas[i].Lost != "" {
				out.Alarms = append(out.Alarms, replicas[i].Lost)
			}
		}
	}
	b.addDisks(ctx, st, &out)
	if a := b.node.stores.alarm(); a != "" {
		out.Alarms = append(out.Alarms, a)
	}
	return out, nil
}

// nodes lists the registered nodes with what gossip thinks of them, and before
// the cluster exists those that gossip has found.
func (b *backend) nodes(st *meta.State) []api.Node {
	seen := map[telemetry.NodeID]gossip.Member{}
	for _, m := range b.node.gossip.Members() {
		seen[m.Node] = m
	}
	out := []api.Node{}
	for _, n := range st.Nodes {
		state := api.NodeDead
		if m, ok := seen[n.ID]; ok {
			state = m.State.String()
		}
		if n.Draining && state == api.NodeAlive {
			state = api.NodeDraining
		}
		out = append(out, api.Node{ID: n.ID, Zone: n.Zone, State: state, MQTT: n.MQTT, HTTP: n.HTTP})
	}
	if !st.Initialized() {
		for _, m := range seen {
			out = append(out, api.Node{ID: m.Node, Zone: m.Zone, State: m.State.String(), MQTT: m.MQTT, HTTP: m.HTTP})
		}
	}
	slices.SortFunc(out, func(x, y api.Node) int { return strings.Compare(string(x.ID), string(y.ID)) })
	return out
}

func shardStatus(st *meta.State, id telemetry.ShardID, p placement.Placement, views map[string][]shard.ReplicaStatus) api.Shard {
	out := api.Shard{ID: id, Replicas: []api.Replica{}}
	term := uint64(0)
	replicas := p.Replicas
	if m, moving := st.Moves[id]; moving && m.To != "" {
		replicas = append(slices.Clone(replicas), m.To)
	}
	for _, nodeID := range replicas {
		n := st.Nodes[nodeID]
		rep := api.Replica{Node: nodeID, Zone: n.Zone, Role: api.RoleVoter}
		if !p.Has(nodeID) {
			rep.Role = api.RoleNonvoter // until it says otherwise
		}
		i := slices.IndexFunc(views[n.Peer()], func(r shard.ReplicaStatus) bool { return r.Shard == id })
		if _, answered := views[n.Peer()]; answered && i < 0 {
			rep.Role = api.RoleNonvoter // it is there, but does not run the replica
		}
		if i >= 0 {
			v := views[n.Peer()][i]
			rep.Role, rep.Incarnation = v.Role, v.Incarnation
			// Of two replicas that believe they lead, the later term is right.
			if v.Role == api.RoleLeader && v.Term >= term {
				term = v.Term
				out.Leader = nodeID
				out.Committed, out.Applied, out.Flushed, out.BacklogBytes = v.Committed, v.Applied, v.Flushed, v.BacklogBytes
			}
		}
		out.Replicas = append(out.Replicas, rep)
	}
	return out
}

func alarms(s *api.Status, st *meta.State) []string {
	var out []string
	for _, n := range s.Nodes {
		if n.State == api.NodeDead || n.State == api.NodeSuspect {
			out = append(out, fmt.Sprintf("node %s (zone %s) is %s", n.ID, n.Zone, n.State))
		}
	}
	leaderless := 0
	for _, sh := range s.Shards {
		if sh.Leader == "" {
			leaderless++
		}
	}
	if leaderless > 0 {
		out = append(out, fmt.Sprintf("%d of %d shards have no leader", leaderless, len(s.Shards)))
	}
	out = append(out, repairs(s, st)...)
	if !s.ZoneSafe && st.Initialized() {
		out = append(out, "the loss of one zone would stop some shards: run nodes in three zones")
	}
	return out
}

// repairs names the nodes with replicas that do not vote although they should,
// and those that keep what they were told to give away.
func repairs(s *api.Status, st *meta.State) (out []string) {
	building := map[telemetry.NodeID]int{}
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			if r.Role == api.RoleNonvoter && st.Moves[sh.ID].To != r.Node {
				building[r.Node]++
			}
		}
	}
	leaving := map[telemetry.NodeID]bool{}
	for _, n := range s.Nodes {
		if k := building[n.ID]; k > 0 {
			out = append(out, fmt.Sprintf("node %s: %d replicas do not vote yet, they are being rebuilt from their peers", n.ID, k))
		}
		leaving[n.ID] = n.State == api.NodeDraining
	}
	for _, n := range s.Nodes {
		if left := held(st, n.ID); leaving[n.ID] && left > 0 && !emptied(st, leaving) {
			out = append(out, fmt.Sprintf("node %s is draining but keeps its %d replicas: the other nodes cannot take them without being less safe", n.ID, left))
		}
	}
	return out
}

func held(st *meta.State, id telemetry.NodeID) (n int) {
	for _, p := range st.Table {
		if p.Has(id) {
			n++
		}
	}
	return n
}

// emptied reports whether placement would take the replicas off the nodes that
// leave.
func emptied(st *meta.State, leaving map[telemetry.NodeID]bool) bool {
	all := st.PlacementNodes(true)
	rest := slices.DeleteFunc(slices.Clone(all), func(n placement.Node) bool { return leaving[n.ID] })
	return canLeave(st, st.Table, all, rest)
}

func movesOf(st *meta.State) []api.Move {
	out := make([]api.Move, 0, len(st.Moves))
	for id, m := range st.Moves {
		out = append(out, api.Move{Shard: id, From: m.From, To: m.To})
	}
	slices.SortFunc(out, func(x, y api.Move) int { return cmp.Compare(x.Shard, y.Shard) })
	return out
}

// Ledger implements api.Cluster.
func (b *backend) Ledger(ctx context.Context) (api.Ledger, error) {
	counts, err := b.node.router.Counts(ctx)
	if err != nil {
		return api.Ledger{}, unavailable(err)
	}
	out := api.Ledger{Shards: []api.ShardLedger{}}
	for id, c := range counts {
		l := api.LedgerCounts{Applied: c.Applied, Duplicate: c.Duplicate, Quarantined: c.Quarantined, Flushed: c.Flushed, Pending: c.Applied - c.Flushed}
		l.Received = l.Applied + l.Duplicate + l.Quarantined
		out.Shards = append(out.Shards, api.ShardLedger{ID: id, LedgerCounts: l})
		out.Totals.Add(l)
	}
	refused := b.node.refused(ctx)
	out.Totals.Refused += refused
	out.Totals.Received += refused
	slices.SortFunc(out.Shards, func(x, y api.ShardLedger) int { return cmp.Compare(x.ID, y.ID) })
	return out, nil
}

// Ready implements api.Cluster.
func (b *backend) Ready(context.Context) error { return b.node.ready() }

// Init implements api.Cluster: the one act that makes a cluster.
func (b *backend) Init(ctx context.Context, req api.InitRequest) error {
	return b.node.initCluster(ctx, req)
}

// Drain implements api.Cluster.
func (b *backend) Drain(ctx context.Context, id telemetry.NodeID) error {
	return b.setDraining(ctx, id, true)
}

// EndDrain implements api.Cluster.
func (b *backend) EndDrain(ctx context.Context, id telemetry.NodeID) error {
	return b.setDraining(ctx, id, false)
}

func (b *backend) setDraining(ctx context.Context, id telemetry.NodeID, draining bool) error {
	if _, ok := b.node.meta.State().Nodes[id]; !ok {
		return fmt.Errorf("node %s: %w", id, api.ErrNotFound)
	}
	if err := b.node.meta.Propose(ctx, meta.SetDraining{Node: id, Draining: draining}); err != nil {
		return unavailable(err)
	}
	return nil
}

// Evict implements api.Cluster.
func (b *backend) Evict(ctx context.Context, id telemetry.NodeID) error {
	st := b.node.meta.State()
	n, ok := st.Nodes[id]
	if !ok {
		return fmt.Errorf("node %s: %w", id, api.ErrNotFound)
	}
	busy := held(st, id)
	for _, m := range st.Moves {
		if m.To == id {
			busy++
		}
	}
	if busy > 0 && b.node.alive(n.Peer()) {
		return fmt.Errorf("node %s is alive and has %d replicas: drain it until it has none, or stop it first: %w", id, busy, api.ErrConflict)
	}
	return unavailable(b.node.meta.Propose(ctx, meta.Evict{Peer: n.Peer()}))
}

// Readings implements api.Reader.
func (b *backend) Readings(ctx context.Context, q store.Query) ([]store.Point, error) {
	points, err := b.node.router.Readings(ctx, q)
	return points, unavailable(err)
}

// Buckets implements api.Reader.
func (b *backend) Buckets(ctx context.Context, q store.Aggregate) ([]store.Bucket, error) {
	buckets, err := b.node.router.Buckets(ctx, q)
	return buckets, unavailable(err)
}

// Await implements api.Reader.
func (b *backend) Await(ctx context.Context, device string, writes []telemetry.Write) error {
	err := b.node.router.Await(ctx, device, writes)
	if errors.Is(err, shard.ErrNotReached) {
		return fmt.Errorf("the token names a write that is not here (%w), it was given by another cluster or before data was lost: leave it out", errors.Join(err, api.ErrConflict))
	}
	return unavailable(err)
}

// Devices implements api.Reader.
func (b *backend) Devices(ctx context.Context, q api.DeviceQuery) ([]api.Device, error) {
	ds, err := b.node.router.Devices(ctx, q.After, q.Limit, q.Where, q.Now)
	out := make([]api.Device, len(ds))
	for i := range ds {
		out[i] = apiDevice(&ds[i])
	}
	return out, unavailable(err)
}

// Device implements api.Reader.
func (b *backend) Device(ctx context.Context, id string) (api.Device, error) {
	d, err := b.node.router.Device(ctx, id)
	return apiDevice(&d), unavailable(err)
}

func apiDevice(d *shard.Device) api.Device {
	out := api.Device{ID: d.ID, FirstSeen: api.Time(d.FirstSeen), LastSeen: api.Time(d.LastSeen)}
	if len(d.Attributes) > 0 {
		out.Attributes = make(map[string]string, len(d.Attributes))
	}
	for _, a := range d.Attributes {
		out.Attributes[a.Key] = a.Value
	}
	for _, l := range d.Latest {
		out.Latest = append(out.Latest, api.ReadingOf(&store.Point{Time: l.Time, Sensor: l.Sensor, Value: l.Value, Score: l.Score, Quality: l.Quality}))
	}
	if d.MaintenanceUntil > clock.Micros(time.Now()) {
		until := api.Time(d.MaintenanceUntil)
		out.MaintenanceUntil = &until
	}
	for i := range d.Open {
		out.Anomalies = append(out.Anomalies, api.AnomalyOf(&d.Open[i]))
	}
	return out
}

// Anomalies implements api.Reader.
func (b *backend) Anomalies(ctx context.Context, q api.AnomalyQuery) ([]telemetry.Anomaly, error) {
	f := shard.AnomalyFilter{Device: q.Device, Open: q.Open, From: q.From, To: q.To, Limit: q.Limit}
	if q.After != nil {
		f.AfterTime, f.AfterID = q.After.Time, q.After.ID
	}
	as, err := b.node.router.Anomalies(ctx, f)
	return as, unavailable(err)
}

// Quarantined implements api.Quarantine.
func (b *backend) Quarantined(ctx context.Context, q api.QuarantineQuery) ([]api.Quarantined, error) {
	byShard, err := b.node.router.Quarantined(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	var out []api.Quarantined
	for id, items := range byShard {
		for i := range items {
			if a := apiQuarantined(id, &items[i]); q.Matches(&a) {
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, func(x, y api.Quarantined) int {
		return cmp.Or(cmp.Compare(y.Received, x.Received), strings.Compare(y.ID, x.ID))
	})
	return out[:min(q.Limit, len(out))], nil
}

func apiQuarantined(id telemetry.ShardID, q *shard.Quarantined) api.Quarantined {
	return api.Quarantined{ID: fmt.Sprintf("%d-%d", id, q.ID), Device: q.Device, Topic: q.Topic, Received: api.Time(q.Received), Reason: q.Reason, Payload: q.Payload}
}

// ReplayQuarantine implements api.Quarantine.
func (b *backend) ReplayQuarantine(ctx context.Context, id string, payload []byte) (telemetry.Result, error) {
	home, seq, err := quarantineID(id)
	if err != nil {
		return telemetry.Result{}, err
	}
	byShard, err := b.node.router.Quarantined(ctx)
	if err != nil {
		return telemetry.Result{}, unavailable(err)
	}
	items := byShard[home]
	i := slices.IndexFunc(items, func(q shard.Quarantined) bool { return q.ID == seq })
	if i < 0 {
		return telemetry.Result{}, fmt.Errorf("quarantined message %s: %w", id, api.ErrNotFound)
	}
	if payload == nil {
		payload = items[i].Payload
	}
	if bad := stillBad(items[i].Device, payload); bad.Quarantined > 0 {
		return bad, nil // publishing it would only quarantine it once more
	}
	res := make(chan telemetry.Result, 1)
	b.node.intake.Publish(&telemetry.Publish{Device: items[i].Device, Topic: items[i].Topic, Payload: payload, Received: items[i].Received, QoS: 1}, func(r telemetry.Result) { res <- r })
	select {
	case <-ctx.Done():
		return telemetry.Result{Unknown: 1}, &api.UnavailableError{Reason: "the shard has not answered in time", Err: ctx.Err()}
	case r := <-res:
		if r.Quarantined+r.Refused+r.Unknown > 0 {
			return r, nil
		}
		return r, unavailable(b.node.router.RemoveQuarantined(ctx, home, seq))
	}
}

// stillBad counts the messages of a payload that cannot be applied.
func stillBad(device string, payload []byte) (res telemetry.Result) {
	msgs, err := telemetry.NewScanner().Parse(device, payload, 0, nil)
	if err != nil {
		return telemetry.Result{Quarantined: 1, Reason: err.Error()}
	}
	for i := range msgs {
		if msgs[i].Reason != "" {
			res.Quarantined++
			res.Reason = msgs[i].Reason
		}
	}
	return res
}

// DropQuarantine implements api.Quarantine.
func (b *backend) DropQuarantine(ctx context.Context, id string) error {
	home, seq, err := quarantineID(id)
	if err != nil {
		return err
	}
	byShard, err := b.node.router.Quarantined(ctx)
	if err != nil {
		return unavailable(err)
	}
	if !slices.ContainsFunc(byShard[home], func(q shard.Quarantined) bool { return q.ID == seq }) {
		return fmt.Errorf("quarantined message %s: %w", id, api.ErrNotFound)
	}
	return unavailable(b.node.router.RemoveQuarantined(ctx, home, seq))
}

func quarantineID(id string) (telemetry.ShardID, uint64, error) {
	s, q, ok := strings.Cut(id, "-")
	home, err1 := strconv.ParseUint(s, 10, 32)
	seq, err2 := strconv.ParseUint(q, 10, 64)
	if !ok || err1 != nil || err2 != nil || home > math.MaxUint32 {
		return 0, 0, fmt.Errorf("quarantined message %q: %w", id, api.ErrNotFound)
	}
	return telemetry.ShardID(home), seq, nil
}

// unavailable gives errors of the shards the API's names.
func unavailable(err error) error {
	var nl *shard.NotLeaderError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, shard.ErrNotFound):
		return notFound{err}
	case errors.As(err, &nl):
		return &api.UnavailableError{Err: err}
	default:
		return err
	}
}

// notFound is what a shard does not know, in the shard's words.
type notFound struct{ error }

// Is makes errors.Is(err, api.ErrNotFound) true.
func (notFound) Is(target error) bool { return target == api.ErrNotFound }
