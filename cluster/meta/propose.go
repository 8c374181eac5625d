package meta

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// retryPause separates attempts while there is no leader: a tenth of the
	// time a planned fail-over takes.
	retryPause = 25 * time.Millisecond
	// retryPauseMax keeps a node without a cluster from asking in a tight loop.
	retryPauseMax = 500 * time.Millisecond
)

// Propose commits a command and returns when it is applied on the leader; this
// node's State may show it a little later (see Sync). It retries until ctx ends
// while there is no leader or no cluster yet. A refusal of the group comes back as one of the
// sentinels of this package; every other error means that the outcome is
// unknown, and proposing the same command again is safe.
func (m *Meta) Propose(ctx context.Context, c Command) error {
	_, err := m.propose(ctx, c)
	return err
}

// NextEpoch hands out the next origin epoch of this node: greater than every one
// before, over restarts and incarnations, and never handed out twice.
func (m *Meta) NextEpoch(ctx context.Context) (uint64, error) {
	r, err := m.propose(ctx, nextEpoch{Peer: m.cfg.Peer})
	if err != nil {
		return 0, fmt.Errorf("draw origin epoch: %w", err)
	}
	return r.Epoch, nil
}

func (m *Meta) propose(ctx context.Context, c Command) (result, error) {
	entry, err := encodeCommand(c)
	if err != nil {
		return result{}, err
	}
	var last error
	for pause := retryPause; ; pause = min(2*pause, retryPauseMax) {
		r, err := m.attempt(ctx, entry)
		if err == nil && r.Code > codeNotInitialized {
			m.metrics.proposals.WithLabelValues("refused").Inc()
			return r, r.err()
		}
		if err == nil && r.Code == codeOK {
			m.metrics.proposals.WithLabelValues("committed").Inc()
			return r, nil
		}
		if last = err; err == nil {
			last = r.err()
		}
		select {
		case <-ctx.Done():
			m.metrics.proposals.WithLabelValues("abandoned").Inc()
			return result{}, fmt.Errorf("propose to meta group: %w (last attempt: %w)", ctx.Err(), last)
		case <-m.closing:
			return result{}, ErrClosed
		case <-time.After(pause):
		}
	}
}

// attempt applies the entry here, or asks the leader, or, where none is known,
// every contact in turn.
func (m *Meta) attempt(ctx context.Context, entry []byte) (result, error) {
	if m.IsLeader() {
		return m.applyHere(ctx, entry)
	}
	if leader := m.Leader(); leader != "" && leader != m.cfg.Peer {
		return m.ask(ctx, leader, opPropose, 1, entry)
	}
	r, err := result{Code: codeNoLeader}, error(nil)
	for _, peer := range m.contacts() {
		r, err = m.ask(ctx, peer, opPropose, 0, entry)
		if err == nil && (r.Code == codeOK || r.Code > codeNotInitialized) {
			return r, nil
		}
	}
	return r, err // of the last contact: all of them ask for patience
}

// contacts lists the peers that may know the leader: those raft knows, and those
// gossip knows.
func (m *Meta) contacts() []string {
	peers := m.Members()
	if m.deps.Contacts != nil {
		peers = append(peers, m.deps.Contacts()...)
	}
	slices.Sort(peers)
	peers = slices.Compact(peers)
	return slices.DeleteFunc(peers, func(p string) bool { return p == m.cfg.Peer })
}

func (m *Meta) applyHere(ctx context.Context, entry []byte) (result, error) {
	if r := m.judge(entry); r.Code != codeOK {
		return r, nil
	}
	f := m.raft.Apply(entry, forwardTimeout)
	if err := m.await(ctx, f); err != nil {
		return result{}, raftError(err)
	}
	r, ok := f.Response().(result)
	if !ok {
		return result{}, fmt.Errorf("apply to meta group: unexpected answer %T", f.Response())
	}
	return r, nil
}

// judge refuses, before it is in the log, what the leader knows better than the
// state: an incarnation that runs must not be replaced. It is a precaution
// against two nodes with one id; if it errs, raft still counts every voter once.
func (m *Meta) judge(entry []byte) result {
	c, err := decodeCommand(entry)
	if err != nil {
		return refuse(codeInvalid, "%v", err)
	}
	r, ok := c.(ReplaceNode)
	if ok && m.deps.Alive != nil && m.State().Nodes[r.Node.ID].Peer() == r.Old && m.deps.Alive(r.Old) {
		return refuse(codeAlive, "peer %s", r.Old)
	}
	return result{}
}

func raftError(err error) error {
	switch {
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrClosed
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", errNoLeader, err)
	default:
		return err
	}
}

// ask sends a request to one peer and waits for its answer.
func (m *Meta) ask(ctx context.Context, peer string, op byte, hops byte, body []byte) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	b, err := m.deps.Forwarder.Forward(ctx, peer, append([]byte{wireVersion, op, hops}, body...))
	if err != nil {
		return result{}, fmt.Errorf("forward to %s: %w", peer, err)
	}
	if len(b) < 1 || b[0] != wireVersion {
		return result{}, fmt.Errorf("forward to %s: answer of another version", peer)
	}
	var r result
	if err := json.Unmarshal(b[1:], &r); err != nil {
		return result{}, fmt.Errorf("decode answer of %s: %w", peer, err)
	}
	return r, nil
}

// Sync returns when State shows every command that was acknowledged, to anyone,
// before Sync was called.
func (m *Meta) Sync(ctx context.Context) error {
	for {
		index, err := m.committed(ctx)
		if err == nil {
			return m.waitApplied(ctx, index)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sync with meta group: %w (last attempt: %w)", ctx.Err(), err)
		case <-m.closing:
			return ErrClosed
		case <-time.After(retryPause):
		}
	}
}

// committed is an index at or after every commit acknowledged so far.
func (m *Meta) committed(ctx context.Context) (uint64, error) {
	if m.IsLeader() {
		if err := m.await(ctx, m.raft.Barrier(forwardTimeout)); err != nil {
			return 0, raftError(err)
		}
		return m.raft.AppliedIndex(), nil
	}
	leader := m.Leader()
	if leader == "" || leader == m.cfg.Peer {
		return 0, errNoLeader
	}
	r, err := m.ask(ctx, leader, opSync, 1, nil)
	if err == nil {
		err = r.err()
	}
	if err == nil && r.Status == nil {
		err = fmt.Errorf("%s answered without a status", leader)
	}
	if err != nil {
		return 0, err
	}
	return r.Status.Applied, nil
}

func (m *Meta) waitApplied(ctx context.Context, index uint64) error {
	t := time.NewTicker(5 * time.Millisecond) // raft tells nobody of applied no-ops and configurations
	defer t.Stop()
	for m.raft.AppliedIndex() < index {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for meta entry %d, applied %d: %w", index, m.raft.AppliedIndex(), ctx.Err())
		case <-m.closing:
			return ErrClosed
		case <-t.C:
		}
	}
	return nil
}

// WaitReady returns when the cluster is initialised and State shows everything
// that was acknowledged before the call. It fails at once when this node cannot
// be part of the cluster: ErrEvicted, ErrOtherCluster.
func (m *Meta) WaitReady(ctx context.Context) error {
	for {
		changed := m.Watch()
		s := m.State()
		if s.Initialized() {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for meta group: %w (%w)", ctx.Err(), ErrNotInitialized)
		case <-m.closing:
			return ErrClosed
		}
	}
	if err := m.admissible(); err != nil {
		return err
	}
	if err := m.Sync(ctx); err != nil {
		return err
	}
	return m.admissible()
}

func (m *Meta) admissible() error {
	s := m.State()
	if m.cfg.ClusterID != "" && s.ClusterID != m.cfg.ClusterID {
		return fmt.Errorf("%w (directory: %s, group: %s)", ErrOtherCluster, m.cfg.ClusterID, s.ClusterID)
	}
	if s.Evicted[m.cfg.Peer] {
		return fmt.Errorf("%w (peer %s)", ErrEvicted, m.cfg.Peer)
	}
	return nil
}
