package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/internal/serverid"
	"github.com/sluice-iot/sluice/telemetry"
)

// GroupOf is the raft group of a shard; group 0 is the meta group.
func GroupOf(s telemetry.ShardID) uint32 { return uint32(s) + 1 }

// ShardOfGroup is the inverse of GroupOf.
func ShardOfGroup(group uint32) telemetry.ShardID { return telemetry.ShardID(group - 1) }

// HostConfig is what a node's shards have in common.
type HostConfig struct {
	Self  string // peer id of this node
	Dir   string // snapshots live in Dir/<shard>
	Flush FlushConfig
	// FlushesMax is how many flushes a node runs at once (default 2): more only
	// compete for the disk or for the database's connections.
	FlushesMax int
	Limits     Limits // zero is the default of each
	Scrub      Scrub  // of the snapshots of replicas that run
	// Clock is the wall clock that leaders propose; nil is the machine's.
	Clock *clock.Clock
}

// Validate returns every problem of the configuration.
func (c *HostConfig) Validate() error {
	var errs []error
	if c.Self == "" {
		errs = append(errs, errors.New("self: peer id is empty"))
	}
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: directory for snapshots is empty"))
	}
	if c.Flush.Interval <= 0 {
		errs = append(errs, fmt.Errorf("flush.interval is %v: use a positive duration, 30s for the embedded store, 1s for a database", c.Flush.Interval))
	}
	if c.Flush.RowsMax <= 0 {
		errs = append(errs, fmt.Errorf("flush.rows_max is %d: use a positive number, 100000 for example", c.Flush.RowsMax))
	}
	if c.FlushesMax <= 0 {
		errs = append(errs, fmt.Errorf("flushes_max is %d: use 1 to 8", c.FlushesMax))
	}
	return errors.Join(errs...)
}

// Replica says where one shard lives; every node with the same table opens the
// same raft group.
type Replica struct {
	Shard     telemetry.ShardID
	Peers     []string // peer ids that should vote, in the order of the table
	Preferred string   // peer id of the replica that should lead
	// Seed lists the peers that start the group together, those of the table the
	// cluster was created with, if this node is one of them. Any other replica is
	// started by the group's leader, never by itself.
	Seed []string
	// Here says that this node holds a replica although it is not among Peers: it
	// is to leave.
	Here bool
	// Left says that the cluster has agreed that this node holds none any more:
	// its group has gone on without it, and what it still has of it is let go.
	// Not being named is not enough for that.
	Left bool
	// Moving says that the table will be changed to Peers when the group has
	// exactly them as voters; Deps.Settled is told then.
	Moving bool
}

// Transport is the part of the node-to-node transport that hosting needs.
type Transport interface {
	// Group returns the raft transport of a group, for one incarnation of the replica
	// here: what is meant for another one never reaches its raft. It is closed with
	// its raft.
	Group(group, incarnation uint32) raft.Transport
	// Poke makes the group's replica on this node stand for election at once.
	Poke(group uint32) error
	// Connected reports whether a peer can be reached right now.
	Connected(peer string) bool
}

// SnapshotNotifier is implemented by a Transport that can tell when raft has
// installed a snapshot from a leader. The group is then closed and opened again
// if its log reached as far as the snapshot: raft 1.8.0 goes on with the cached
// end of a log that it has emptied (hashicorp/raft#697), and such a replica
// would never accept an append again.
type SnapshotNotifier interface {
	// OnSnapshot calls offered before the first byte of a snapshot is read and
	// installed when raft runs on it; neither may block. A snapshot of which all
	// is committed here already (known) is answered with success and not given to
	// raft, which would throw away what it has acknowledged since.
	OnSnapshot(group uint32, offered func(*raft.InstallSnapshotRequest) (known bool), installed func(*raft.InstallSnapshotRequest))
}

// Deps is what the Host is given.
type Deps struct {
	Log       func(group uint32) Log
	Transport Transport
	Stores    Stores
	Detector  *anomaly.Detector
	Emit      func([]Event) // anomaly events of shards led here; must not block
	// Confirms says that events given to Emit are confirmed by Host.Confirm; what is
	// not is told again by the next leader of its shard.
	Confirms bool
	// Ask reaches the other replicas to prove leadership before a read. Without
	// it raft's own proof is used, which a process that stood still can get wrong.
	Ask Asker
	// Sessions acts on the sessions of shards led here; nil is nobody.
	Sessions Sessions
	// Draining reports whether a peer gives its leaderships away, so that none is
	// handed to it; nil is nobody. It must not block.
	Draining func(peer string) bool
	// SlowDisk reports whether the disk of the log is slow lately; the node leads no
	// shard then if another can. nil: not known. It must not block.
	SlowDisk func() bool
	// Evicted reports whether a peer was replaced or removed for ever, so that no
	// group waits for it; nil is nobody. It must not block.
	Evicted func(peer string) bool
	// Complete reports whether the local store has, verified, all rows of a shard
	// up to an index; a replica votes only then. nil is always.
	Complete func(id telemetry.ShardID, upTo uint64) bool
	// Drop removes the rows of a shard that has left this node; nil is nothing.
	Drop func(telemetry.ShardID) error
	// RottenRows reports whether rows of a shard in the local store were damaged and
	// are not back yet; meanwhile the replica takes part in no election and the shard
	// is led elsewhere, if another replica can. nil: never. It must not block.
	RottenRows func(id telemetry.ShardID) bool
	// OnDamage is told of every damaged snapshot of a replica here, once; nil is
	// nobody. It must not block.
	OnDamage func(error)
	// Settled is told when a moving shard has the voters it should have. It may
	// block, and is told again until the table says so.
	Settled func(context.Context, Replica)
}

// Host runs the replicas of one node.
type Host struct {
	logger  *slog.Logger
	metrics *metrics
	cfg     HostConfig
	deps    Deps
	turns   *turns
	slow    atomic.Bool // the disk of the log; set by tendDisk

	mu       sync.RWMutex
	shards   map[telemetry.ShardID]*hosted
	builds   map[telemetry.ShardID]time.Time    // replicas being built here, and since when
	brokens  map[telemetry.ShardID]*broken      // replicas not started because of damage
	gone     map[replicaOf]uint32               // of members of shards led here: incarnations below are gone
	rotten   map[telemetry.ShardID]*DamageError // snapshots of running replicas, until they are replaced
	draining bool
	closed   bool

	ctx  context.Context // ends when the host closes; the lifetime of its goroutines
	stop context.CancelFunc
	done sync.WaitGroup

	opening sync.Mutex // replicas are opened and closed one at a time, but by Close
}

type hosted struct {
	*Shard
	place      atomic.Pointer[Replica]
	leaderless time.Time // since when no leader is known, or since it last stood; zero while one is. Owned by Run
	ballot     *ballot
	logEnd     atomic.Uint64 // of the log when a snapshot was offered
}

// replica is what the table says of the shard now.
func (s *hosted) replica() *Replica { return s.place.Load() }

// servers is the group's latest configuration, committed or not.
func (s *Shard) servers() []raft.Server {
	f := s.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

// voters lists the peers that vote in the group's latest configuration.
func (s *Shard) voters() []string {
	var out []string
	for _, srv := range s.servers() {
		if srv.Suffrage == raft.Voter {
			out = append(out, serverid.Peer(srv.ID))
		}
	}
	return out
}

// member is this very incarnation of the replica in the group's latest
// configuration.
func (s *Shard) member() (srv raft.Server, ok bool) {
	servers := s.servers()
	i := slices.IndexFunc(servers, func(srv raft.Server) bool { return srv.ID == s.server })
	if i < 0 {
		return raft.Server{}, false
	}
	return servers[i], true
}

// votes reports whether it is a voter of that configuration.
func (s *Shard) votes() bool {
	srv, ok := s.member()
	return ok && srv.Suffrage == raft.Voter
}

// OpenHost starts with no shard; Reconcile opens them.
func OpenHost(logger *slog.Logger, reg prometheus.Registerer, cfg HostConfig, deps Deps) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Sessions == nil {
		deps.Sessions = nobody{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &Host{
		logger: logger, metrics: newMetrics(reg), cfg: cfg, deps: deps,
		turns:  newTurns(cfg.FlushesMax),
		shards: map[telemetry.ShardID]*hosted{}, ctx: ctx, stop: cancel,
		builds: map[telemetry.ShardID]time.Time{}, brokens: map[telemetry.ShardID]*broken{}, gone: map[replicaOf]uint32{},
		rotten: map[telemetry.ShardID]*DamageError{},
	}
	h.done.Go(func() { h.keepSnapshots(ctx) })
	h.done.Go(func() { cfg.Scrub.Due(ctx, h.scrubSnapshots) })
	return h, nil
}

// Reconcile follows the table: it opens the replicas that live here and are not
// open, tells the open ones of their peers, and lets go of those that have left.
// A damaged replica is no error, see Damaged.
func (h *Host) Reconcile(table []Replica) error {
	for _, r := range table {
		if err := h.follow(r); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) follow(r Replica) error {
	h.mu.RLock()
	s, b := h.shards[r.Shard], h.brokens[r.Shard]
	h.mu.RUnlock()
	if s != nil && !r.Left {
		s.place.Store(&r)
		return nil
	}
	if s == nil && b == nil && !r.Here && !slices.Contains(r.Peers, h.cfg.Self) {
		return nil
	}
	h.opening.Lock()
	defer h.opening.Unlock()
	h.mu.RLock()
	s, b = h.shards[r.Shard], h.brokens[r.Shard] // nobody changes them now
	h.mu.RUnlock()
	switch {
	case b != nil:
		return h.keepBroken(r, b.err)
	case s != nil && r.Left:
		return h.retire(s)
	case s != nil:
		s.place.Store(&r)
		return nil
	}
	err := h.open(r)
	var damage *DamageError
	if errors.As(err, &damage) {
		return h.keepBroken(r, damage)
	}
	return err
}

func (h *Host) open(r Replica) error {
	group := GroupOf(r.Shard)
	cfg := replicaConfig{
		id: r.Shard, self: h.cfg.Self, flush: h.cfg.Flush, limits: h.cfg.Limits, clock: h.cfg.Clock,
		snapshots: h.dir(r.Shard),
	}
	log := h.deps.Log(group)
	if err := h.finishRetirement(r.Shard, log); err != nil {
		return err
	}
	if err := h.checkSnapshots(r.Shard, cfg.snapshots, log); err != nil {
		return err
	}
	var err error
	if cfg.incarnation, err = incarnationOf(log); err != nil {
		return fmt.Errorf("read incarnation of shard %d: %w", r.Shard, err)
	}
	for _, p := range r.Seed {
		if cfg.incarnation == serverid.First { // the group has begun long before any other
			cfg.bootstrap.Servers = append(cfg.bootstrap.Servers, raft.Server{ID: serverid.Of(p, serverid.First), Address: raft.ServerAddress(p)})
		}
	}
	trans := h.deps.Transport.Group(group, cfg.incarnation)
	b := new(ballot)
	b.hears(false, time.Now())
	h.watchElections(r.Shard, b)
	s, err := openShard(h.logger, h.metrics, cfg, replicaDeps{
		log: log, trans: trans, stores: h.deps.Stores, det: h.deps.Detector,
		emit: h.deps.Emit, confirms: h.deps.Confirms, onLead: h.leads, onStuck: h.stuck, turns: h.turns, ask: h.deps.Ask, sessions: h.deps.Sessions,
	})
	if err != nil {
		if c, ok := trans.(raft.WithClose); ok {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	hs := &hosted{Shard: s, leaderless: time.Now(), ballot: b}
	hs.place.Store(&r)
	h.watchSnapshots(hs)
	h.watchVotes(hs)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shards[r.Shard] = hs
	return nil
}

// watchSnapshots opens the replica again when a snapshot has replaced a log that
// reached as far as the snapshot, see SnapshotNotifier.
func (h *Host) watchSnapshots(s *hosted) {
	n, ok := h.deps.Transport.(SnapshotNotifier)
	if !ok {
		return
	}
	offered := func(r *raft.InstallSnapshotRequest) bool {
		if last, err := s.log.LastIndex(); err == nil {
			s.logEnd.Store(last)
		}
		return r.LastLogIndex <= s.raft.CommitIndex()
	}
	installed := func(r *raft.InstallSnapshotRequest) {
		if s.logEnd.Load() >= r.LastLogIndex {
			h.background(func() { h.reopen(s) })
		}
	}
	n.OnSnapshot(GroupOf(s.id), offered, installed)
}

func (h *Host) reopen(s *hosted) {
	h.opening.Lock()
	defer h.opening.Unlock()
	if !h.detach(s) {
		return
	}
	if err := s.close(); err != nil {
		s.logger.Error("close replica after a snapshot", "err", err)
	}
	if h.ctx.Err() != nil {
		return
	}
	if err := h.open(*s.replica()); err != nil {
		s.logger.Error("open replica after a snapshot: restart the node", "err", err)
		return
	}
	s.logger.Info("replica opened again after a snapshot over its log")
}

// background runs f on a goroutine that Close waits for; not at all after it.
func (h *Host) background(f func()) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if !h.closed {
		h.done.Go(f)
	}
}

// Shard returns the local replica of a shard.
func (h *Host) Shard(id telemetry.ShardID) (*Shard, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	s, ok := h.shards[id]
	if !ok {
		return nil, false
	}
	return s.Shard, true
}

// Stored tells, for every replica here, up to which log index its rows should
// be in the local store.
func (h *Host) Stored() map[telemetry.ShardID]uint64 {
	out := map[telemetry.ShardID]uint64{}
	for _, s := range h.all() {
		s.fsm.mu.Lock()
		out[s.id] = s.fsm.pending.durable
		s.fsm.mu.Unlock()
	}
	return out
}

// Fetched counts segments that were fetched from peers.
func (h *Host) Fetched(n int) { h.metrics.fetched.Add(float64(n)) }

// all returns the local replicas in the order of their ids.
func (h *Host) all() []*hosted {
	h.mu.RLock()
	defer h.mu.RUnlock()
	out := make([]*hosted, 0, len(h.shards))
	for _, s := range h.shards {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *hosted) int { return int(a.id) - int(b.id) })
	return out
}

// snapshotCheck is how often the log's growth is compared with the snapshots.
const snapshotCheck = time.Second

func (h *Host) keepSnapshots(ctx context.Context) {
	tick := time.NewTicker(snapshotCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			all := h.all()
			for _, s := range all {
				s.shareMemory(len(all))
				s.maybeSnapshot()
			}
		}
	}
}

// Close stops every replica. Entries committed and not applied yet are applied
// again after the next start. The contexts of Run and PeerDown end before it.
func (h *Host) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.stop()
	h.done.Wait()
	var wg sync.WaitGroup
	all := h.all()
	errs := make([]error, len(all))
	for i, s := range all {
		wg.Go(func() { errs[i] = s.close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
