package shard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/internal/obs"
	"github.com/sluice-iot/sluice/internal/serverid"
	"github.com/sluice-iot/sluice/internal/snapfile"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Log is a shard's part of the node's shared log.
type Log interface {
	raft.LogStore
	raft.StableStore
	// SetFloor promises that entries up to index are stored elsewhere; no
	// deletion of a prefix goes beyond it.
	SetFloor(index uint64)
	// BytesSince is the approximate size of the log behind index.
	BytesSince(index uint64) int64
}

// NotLeaderError answers a proposal or a read that reached the wrong replica.
type NotLeaderError struct {
	Shard  telemetry.ShardID
	Leader string // peer id, "" when unknown
}

func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return fmt.Sprintf("shard %d has no known leader", e.Shard)
	}
	return fmt.Sprintf("shard %d is led by %s", e.Shard, e.Leader)
}

// ErrBusy answers a proposal when as many as proposalsMax wait already.
var ErrBusy = errors.New("shard has too many proposals waiting")

// proposalsMax bounds the proposals that wait for raft: eight nodes with a full
// pipeline each.
const proposalsMax = 256

// Raft timers. Shorter ones cause elections whenever the CPU is busy; the
// failure detector, not these, makes fail-over fast.
const (
	heartbeatTimeout = 2 * time.Second
	leaderLease      = time.Second
	commitTimeout    = 400 * time.Millisecond // how late, up to twice that, a follower hears of the last commit of a burst
	appendEntriesMax = 64
	trailingLogs     = 8192 // a hint; the log itself keeps what is not stored
	snapshotLogBytes = 64 << 20
	snapshotRatio    = 10 // log bytes per snapshot byte, so that snapshots add at most a tenth to what the log writes
	snapshotsKept    = 2
)

// Shard is one replica of one raft group.
type Shard struct {
	id      telemetry.ShardID
	self    string        // peer id of the node
	server  raft.ServerID // of this incarnation of the replica
	logger  *slog.Logger
	metrics *metrics
	raft    *raft.Raft
	fsm     *fsm
	log     Log
	flush   *flusher

	proposals chan proposal
	waiting   chan inFlight
	verifier  verifier
	readable  atomic.Uint64 // term whose barrier has passed; 0 when not leading
	snapIndex atomic.Uint64 // of the last snapshot taken or installed
	limits    Limits
	clock     *clock.Clock
	// listening is since when this replica leads, silenceSeen when it last looked
	// for silent devices, both in the term listenTerm; owned by lead.
	listening   int64 // as the wall clock showed it then
	silenceSeen time.Time
	listenTerm  uint64

	teller      teller
	confirms    bool          // somebody calls Host.Confirm
	confirmed   atomic.Uint64 // index up to which events were delivered
	confirmSeen time.Time     // owned by lead

	sessions  Sessions  // and what the lead loop knows of them
	announced uint64    // term for which Lead was called
	ledSince  time.Time // when
	hinted    time.Time // when the hints were last repeated

	onLead    func(*Shard)              // after winning an election; must not block
	onStuck   func(*Shard)              // when raft takes no entries any more; must not block
	refusing  atomic.Pointer[time.Time] // since when it takes none, see stuck.go
	interrupt func()                    // ends waits of the transport, before raft stops
	ask       Asker                     // nil: raft's own word is taken for leadership

	ctx  context.Context // ends when the shard closes; the lifetime of its goroutines
	stop context.CancelFunc
	done sync.WaitGroup
}

type proposal struct {
	data  []byte
	reply func(any, error)
}

type inFlight struct {
	future raft.ApplyFuture
	reply  func(any, error)
}

// replicaConfig is what the Host decides for one shard.
type replicaConfig struct {
	id        telemetry.ShardID
	self      string
	bootstrap raft.Configuration // used only when the log is empty and Servers is not
	snapshots string             // directory
	flush     FlushConfig
	limits    Limits
	clock     *clock.Clock

	incarnation uint32 // of the replica
}

// Limits are bounds that tests make small; zero fields take their defaults.
type Limits struct {
	// SnapshotLogBytes is how much log makes a snapshot worth taking (default
	// 64 MiB, less of a small log): a restart replays at most about this much per
	// shard.
	SnapshotLogBytes int64
	// TrailingLogs is how many entries before a snapshot stay for followers that
	// are a little behind (default 8192); the log keeps what is not stored anyway.
	TrailingLogs uint64
	// Abstain is how long a shard may be without a leader before a damaged replica
	// takes part in elections all the same (default 10 s).
	Abstain time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.SnapshotLogBytes == 0 {
		l.SnapshotLogBytes = snapshotLogBytes
	}
	if l.TrailingLogs == 0 {
		l.TrailingLogs = trailingLogs
	}
	if l.Abstain == 0 {
		l.Abstain = abstainMax
	}
	return l
}

// replicaDeps is what a shard is given.
type replicaDeps struct {
	log      Log
	trans    raft.Transport
	stores   Stores
	det      *anomaly.Detector
	emit     func([]Event)
	confirms bool
	onLead   func(*Shard)
	onStuck  func(*Shard)
	turns    *turns
	ask      Asker

	sessions Sessions
}

func openShard(logger *slog.Logger, m *metrics, cfg replicaConfig, deps replicaDeps) (*Shard, error) {
	logger = logger.With("shard", cfg.id)
	s := &Shard{
		id: cfg.id, self: cfg.self, server: serverid.Of(cfg.self, cfg.incarnation), logger: logger, metrics: m, log: deps.log, limits: cfg.limits.withDefaults(), clock: cfg.clock,
		proposals: make(chan proposal, proposalsMax),
		waiting:   make(chan inFlight, proposalsMax),
		verifier:  verifier{signal: make(chan struct{}, 1)},
		confirms:  deps.confirms,
		onLead:    deps.onLead, onStuck: deps.onStuck, interrupt: func() {}, ask: deps.ask, sessions: deps.sessions,
	}
	if t, ok := deps.trans.(interface{ Interrupt() }); ok {
		s.interrupt = t.Interrupt
	}
	var running atomic.Pointer[raft.Raft] // raft applies entries before NewRaft returns
	s.fsm = &fsm{machine: newMachine(cfg.id, deps.det), dir: cfg.snapshots, logs: deps.log}
	s.flush = newFlusher(s, cfg.flush, deps.stores, deps.turns, cfg.snapshots)
	s.teller.emit, s.teller.outbox = deps.emit, s.fsm.unconfirmed
	s.fsm.pending.retain = deps.stores.Shared != nil
	s.fsm.restored = func(index uint64) {
		s.snapIndex.Store(index)
		s.teller.passed.Store(index)
		s.flush.wake() // a snapshot may bring ranges that are decided already
	}
	s.fsm.applied = func(events []Event, effects session.Effects) {
		s.flush.wake()
		r := running.Load()
		if r == nil || len(events) == 0 && effects.Empty() || r.State() != raft.Leader {
			s.teller.live(0, events)
			return
		}
		if len(events) > 0 {
			m.emitted(events)
			s.teller.live(r.CurrentTerm(), events)
		}
		if !effects.Empty() {
			s.sessions.Effects(s.id, effects)
		}
	}
	files, err := snapfile.Open(cfg.snapshots, snapshotsKept, obs.Hclog(logger, hclog.Warn))
	if err != nil {
		return nil, fmt.Errorf("open snapshots of shard %d: %w", cfg.id, err)
	}
	if err := dropReplaced(s.log, files.FileSnapshotStore); err != nil {
		return nil, fmt.Errorf("drop the replaced log of shard %d: %w", cfg.id, err)
	}
	snaps := &snapshotStore{Store: files, fsm: s.fsm}
	rc := raftConfig(logger, s.server, s.limits)
	if len(cfg.bootstrap.Servers) > 0 {
		err := raft.BootstrapCluster(rc, s.log, s.log, snaps, deps.trans, cfg.bootstrap)
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return nil, fmt.Errorf("bootstrap shard %d: %w", cfg.id, err)
		}
	}
	if s.raft, err = raft.NewRaft(rc, s.fsm, s.log, s.log, snaps, deps.trans); err != nil {
		return nil, fmt.Errorf("start raft of shard %d: %w", cfg.id, err)
	}
	running.Store(s.raft)
	s.start()
	return s, nil
}

func (s *Shard) start() {
	s.ctx, s.stop = context.WithCancel(context.Background())
	loops := []func(context.Context){s.propose, s.answer, s.lead, s.verify, s.flush.run}
	if s.flush.stores.Shared != nil {
		for i := range s.flush.lanes {
			l := &s.flush.lanes[i]
			loops = append(loops, func(ctx context.Context) { s.flush.runLane(ctx, l) })
		}
	}
	for _, loop := range loops {
		s.done.Go(func() { loop(s.ctx) })
	}
}

func raftConfig(logger *slog.Logger, self raft.ServerID, limits Limits) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = self
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = heartbeatTimeout, heartbeatTimeout, leaderLease
	rc.CommitTimeout = commitTimeout
	rc.MaxAppendEntries = appendEntriesMax
	rc.BatchApplyCh = true
	rc.TrailingLogs = limits.TrailingLogs
	rc.SnapshotThreshold, rc.SnapshotInterval = 1<<62, 24*time.Hour // ours to trigger, see maybeSnapshot
	rc.NoLegacyTelemetry = true
	rc.ShutdownOnRemove = false
	rc.Logger = obs.Hclog(logger, hclog.Warn)
	return rc
}

// leaderTick is how often a leader looks whether something is due.
const leaderTick = 250 * time.Millisecond

// lead runs what only a leader does.
func (s *Shard) lead(ctx context.Context) {
	tick := time.NewTicker(leaderTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.lostSessions()
			return
		case leader := <-s.raft.LeaderCh():
			s.readable.Store(0)
			s.refusing.Store(nil)
			s.lostSessions()
			if leader {
				s.logger.Info("leading shard", "term", s.raft.CurrentTerm())
				s.onLead(s)
				s.leaderTick(ctx, time.Now()) // readable as soon as may be
			}
		case now := <-tick.C:
			s.flush.moveFloor(now)
			if err := s.flush.spillMarks(); err != nil {
				s.logger.Warn("marks of unflushed readings stay in memory", "err", err)
			}
			if s.raft.State() == raft.Leader {
				s.leaderTick(ctx, now)
			}
		}
	}
}

func (s *Shard) leaderTick(ctx context.Context, now time.Time) {
	s.unstick(now)
	if s.readable.Load() != s.raft.CurrentTerm() && !s.barrier() {
		return
	}
	s.flush.decide(ctx, now)
	s.expireQuarantine(ctx, now)
	s.noticeSilence(ctx, now)
	s.tendOutbox(ctx, now)
	s.sessionTick(ctx, now)
}

// silenceCheck is how often a leader looks for devices that should have
// reported: a minute at least is late in any case.
const silenceCheck = 5 * time.Second

// noticeSilence proposes the clock when a device has been silent for too long.
func (s *Shard) noticeSilence(ctx context.Context, now time.Time) {
	if term := s.readable.Load(); s.listenTerm != term {
		s.listenTerm, s.listening, s.silenceSeen = term, s.clock.Micros(now), now
	}
	if now.Sub(s.silenceSeen) < silenceCheck {
		return
	}
	s.silenceSeen = now
	since := s.listening
	s.fsm.mu.Lock()
	due := s.fsm.silentDue(s.clock.Micros(now), since)
	s.fsm.mu.Unlock()
	if due {
		if _, err := s.Call(ctx, timeEntry(s.clock.Micros(now), since)); err != nil {
			s.logger.Debug("silent devices not noticed", "err", err)
		}
	}
}

// barrier makes sure, once per leadership, that everything earlier leaders
// acknowledged has been applied here.
func (s *Shard) barrier() bool {
	term := s.raft.CurrentTerm()
	err := s.raft.Barrier(heartbeatTimeout).Error()
	s.took(err)
	if err != nil {
		return false // leadership lost or no quorum: the next tick asks again
	}
	s.readable.Store(term)
	return true
}

// expireQuarantine proposes the clock when the oldest quarantined message is
// too old; nothing else in the state depends on time yet.
func (s *Shard) expireQuarantine(ctx context.Context, now time.Time) {
	s.fsm.mu.Lock()
	q := &s.fsm.quarantine
	due := len(q.items) > 0 && s.clock.Micros(now)-q.items[0].Received > quarantineAge
	s.fsm.mu.Unlock()
	if due {
		if _, err := s.Call(ctx, timeEntry(s.clock.Micros(now), 0)); err != nil {
			s.logger.Debug("quarantine not expired", "err", err)
		}
	}
}

// maybeSnapshot takes a snapshot when the log has outgrown the last one. The
// Host calls it for one shard after the other.
func (s *Shard) maybeSnapshot() {
	since := s.log.BytesSince(s.snapIndex.Load())
	least := s.flush.turns.room().bound(s.limits.SnapshotLogBytes, snapshotShare)
	if !snapshotDue(since, least, s.snapshotCost()) && !s.worthItsRoom() {
		return
	}
	s.trail()
	if err := s.snapshot(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		s.logger.Warn("take snapshot", "err", err)
	}
}

// snapshotDue reports whether the log since the last snapshot pays for one that
// writes cost.
func snapshotDue(since, least, cost int64) bool { return since >= max(least, snapshotRatio*cost) }

// snapshotCost is what the next snapshot will write, about: the state, and the
// blocks that the store lacks. While the store is away it is what the last one
// wrote, so that each is taken when the log has grown by a multiple of the one
// before; when the store is back the backlog of the outage does not count any
// more, or the log would be kept until it had grown by a multiple of that too.
func (s *Shard) snapshotCost() int64 {
	s.fsm.mu.Lock()
	durable := s.fsm.pending.durable
	s.fsm.mu.Unlock()
	return min(s.fsm.sizes.whole.Load(), s.fsm.sizes.state.Load()+s.log.BytesSince(durable))
}

func (s *Shard) snapshot() error {
	f := s.raft.Snapshot()
	if err := f.Error(); err != nil {
		return err
	}
	meta, rc, err := f.Open()
	if err != nil {
		return fmt.Errorf("open snapshot just taken: %w", err)
	}
	s.snapIndex.Store(meta.Index)
	s.fsm.sizes.whole.Store(meta.Size)
	_ = rc.Close() // opened for its size only
	s.metrics.snapshots.Inc()
	s.metrics.snapshotBytes.Add(float64(meta.Size))
	return nil
}

// HandOver asks raft to transfer leadership to a peer that is up to date, or to
// any when peer is "".
func (s *Shard) HandOver(peer string) error {
	if s.raft.State() != raft.Leader {
		return nil
	}
	if peer == "" {
		return s.raft.LeadershipTransfer().Error()
	}
	for _, srv := range s.servers() {
		if serverid.Peer(srv.ID) == peer {
			return s.raft.LeadershipTransferToServer(srv.ID, srv.Address).Error()
		}
	}
	return fmt.Errorf("hand shard %d over to %s, which is no member", s.id, peer)
}

// closeGrace is how long close waits for what is under way: a leader that has
// lost its quorum notices within its lease and then answers everything.
const closeGrace = 2*leaderLease + time.Second

// close stops the replica. Our own goroutines go first, while raft still runs:
// it answers every future as leader or follower, but forgets those that lie in
// its queues when it stops, and who waits for one then waits for ever.
func (s *Shard) close() error {
	s.stop()
	s.interrupt()
	idle := make(chan struct{})
	go func() {
		s.done.Wait()
		close(idle)
	}()
	var errs []error
	select {
	case <-idle:
	case <-time.After(closeGrace):
		errs = append(errs, fmt.Errorf("shard %d has unanswered proposals %v after it was told to stop", s.id, closeGrace))
	}
	if err := s.raft.Shutdown().Error(); err != nil {
		errs = append(errs, fmt.Errorf("stop raft of shard %d: %w", s.id, err))
	}
	s.flush.spill.close()
	s.flush.books.close()
	s.fsm.closeParking()
	return errors.Join(errs...)
}
