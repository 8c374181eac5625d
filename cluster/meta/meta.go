package meta

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/internal/obs"
)

const (
	// servers is how many forwarded requests are worked on at once: each waits
	// for a commit, so a few keep raft's batching busy.
	servers = 8
	// requestQueue bounds the forwarded requests that wait. 99 nodes that start
	// at once send three each.
	requestQueue = 512
	// forwardTimeout ends one attempt at one node; the next goes elsewhere.
	forwardTimeout = 3 * time.Second
)

// Meta is this node's part of the meta group.
type Meta struct {
	logger  *slog.Logger
	cfg     Config
	deps    Deps
	metrics *metrics
	fsm     *fsm
	raft    *raft.Raft

	requests chan request
	wake     chan struct{} // membership may have to change
	look     chan struct{} // the leader may be gone
	suspect  atomic.Pointer[string]
	initLock sync.Mutex // one Init at a time

	observer *raft.Observer
	closing  chan struct{}
	cancel   context.CancelFunc
	once     sync.Once
	wg       sync.WaitGroup
}

// Open starts the node's part of the group: with existing state it continues,
// with empty stores it waits for Init here or to be contacted by a leader.
func Open(logger *slog.Logger, reg prometheus.Registerer, cfg Config, deps Deps) (*Meta, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure meta group: %w", err)
	}
	if err := deps.validate(); err != nil {
		return nil, fmt.Errorf("configure meta group: %w", err)
	}
	m := &Meta{
		logger:   logger,
		cfg:      cfg,
		deps:     deps,
		metrics:  newMetrics(reg),
		fsm:      newFSM(),
		requests: make(chan request, requestQueue),
		wake:     make(chan struct{}, 1),
		look:     make(chan struct{}, 1),
		closing:  make(chan struct{}),
	}
	rc := cfg.raft()
	rc.Logger = obs.Hclog(logger, hclog.Warn)
	r, err := raft.NewRaft(rc, m.fsm, deps.Stores, deps.Stores, deps.Snapshots, deps.Transport)
	if err != nil {
		return nil, fmt.Errorf("start meta group: %w", err)
	}
	m.raft = r
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.observe()
	m.wg.Go(func() { m.keepMembers(ctx) })
	m.wg.Go(func() { m.keepLeader(ctx) })
	m.wg.Go(func() { m.keepDisk(ctx) })
	for range servers {
		m.wg.Go(func() { m.serve(ctx) })
	}
	return m, nil
}

// observe counts leaders and wakes the duties when leadership changes. The
// filter runs on raft's goroutines and must not block; nothing is delivered.
func (m *Meta) observe() {
	m.observer = raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		switch d := o.Data.(type) {
		case raft.LeaderObservation:
			if d.LeaderID != "" {
				m.metrics.changes.Inc()
				m.suspect.Store(nil)
			}
			rouse(m.wake)
			rouse(m.look)
		case raft.RaftState:
			rouse(m.wake)
		}
		return false
	})
	m.raft.RegisterObserver(m.observer)
}

func rouse(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// State is what this node knows. It never blocks and never returns nil.
func (m *Meta) State() *State { return m.fsm.state.Load() }

// Watch returns a channel that is closed when State changes. Take the channel
// before the state: then no change is missed.
func (m *Meta) Watch() <-chan struct{} { return m.fsm.watch() }

// Leader is the peer that leads as far as this node knows, "" when it knows none.
// A candidate knows none: raft keeps the leader that it last heard of in one that
// was told to stand and then heard of that leader once more, for ever if it is
// gone.
func (m *Meta) Leader() string {
	if m.raft.State() == raft.Candidate {
		return ""
	}
	_, id := m.raft.LeaderWithID()
	return string(id)
}

// Heard is when this node, as a follower, last heard of a leader.
func (m *Meta) Heard() time.Time { return m.raft.LastContact() }

// KnowsSnapshot reports whether a snapshot that a leader offers holds nothing that
// is not committed here: it was delayed, or sent again. Installing it would take
// back what was committed since.
func (m *Meta) KnowsSnapshot(r *raft.InstallSnapshotRequest) bool {
	return r.LastLogIndex <= m.raft.CommitIndex()
}

// IsLeader reports whether this node leads; it may just have been deposed.
func (m *Meta) IsLeader() bool { return m.raft.State() == raft.Leader }

// Voters lists the peers that vote, in the order of the latest configuration this
// node has, which need not be committed yet.
func (m *Meta) Voters() []string {
	return m.members(raft.Voter)
}

// Members lists the peers of the raft group, voters or not.
func (m *Meta) Members() []string {
	return append(m.members(raft.Voter), m.members(raft.Nonvoter)...)
}

func (m *Meta) members(suffrage raft.ServerSuffrage) []string {
	f := m.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	var peers []string
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == suffrage {
			peers = append(peers, string(s.ID))
		}
	}
	return peers
}

// HandOver gives the leadership to another voter, so that a planned stop costs
// no election. It does nothing on a node that does not lead, and returns raft's
// error when no other voter could take over.
func (m *Meta) HandOver(ctx context.Context) error {
	if !m.IsLeader() || len(m.Voters()) < 2 {
		return nil
	}
	if err := m.await(ctx, m.raft.LeadershipTransfer()); err != nil {
		return fmt.Errorf("hand over meta group: %w", err)
	}
	return nil
}

// Snapshot compacts the log now. raft.ErrNothingNewToSnapshot is no error.
func (m *Meta) Snapshot(ctx context.Context) error {
	err := m.await(ctx, m.raft.Snapshot())
	if err != nil && err != raft.ErrNothingNewToSnapshot {
		return fmt.Errorf("snapshot meta group: %w", err)
	}
	return nil
}

// await waits for a future of raft, the end of ctx or Close, whichever is first.
// Close does not wait for its goroutine: a shutdown of raft v1.8.0 drops futures
// that its state machine goroutine has not reached, and those never answer.
func (m *Meta) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.closing:
		return ErrClosed
	}
}

// Close stops the group and waits for its goroutines. The transport is closed
// with it, the stores stay open for the caller to close.
func (m *Meta) Close() error {
	var err error
	m.once.Do(func() {
		close(m.closing)
		m.cancel()
		m.raft.DeregisterObserver(m.observer)
		err = m.raft.Shutdown().Error()
		m.wg.Wait()
	})
	if err != nil {
		return fmt.Errorf("close meta group: %w", err)
	}
	return nil
}
