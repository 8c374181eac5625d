package meta

import (
	"context"
	"encoding/json"

	"github.com/hashicorp/raft"
)

const (
	wireVersion = 1
	opPropose   = 1
	opStatus    = 2
	opSync      = 3
)

// request is one question of another node.
type request struct {
	from  string
	body  []byte
	reply func([]byte, error)
}

// status is what a node says of its part of the group.
type status struct {
	Peer      string `json:"peer"`
	ClusterID string `json:"cluster_id"`
	Leader    string `json:"leader"`
	Standing  bool   `json:"standing"` // in an election of its own
	SlowDisk  bool   `json:"slow_disk,omitempty"`
	Term      uint64 `json:"term"`
	Last      uint64 `json:"last"`
	Commit    uint64 `json:"commit"`
	Applied   uint64 `json:"applied"`
}

// HandleForward takes a request that a Forwarder sent here. It does not block;
// reply is called exactly once, from any goroutine, also after Close.
func (m *Meta) HandleForward(from string, body []byte, reply func([]byte, error)) {
	select {
	case <-m.closing:
		reply(nil, ErrClosed)
		return
	default:
	}
	select {
	case m.requests <- request{from, body, reply}:
	default:
		m.metrics.forwards.WithLabelValues("busy").Inc()
		reply(encodeResult(result{Code: codeBusy}))
	}
}

func (m *Meta) serve(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			m.refuseQueued()
			return
		case q := <-m.requests:
			m.metrics.forwards.WithLabelValues("served").Inc()
			q.reply(encodeResult(m.answer(ctx, q)))
		}
	}
}

func (m *Meta) refuseQueued() {
	for {
		select {
		case q := <-m.requests:
			q.reply(nil, ErrClosed)
		default:
			return
		}
	}
}

func encodeResult(r result) ([]byte, error) {
	b, err := json.Marshal(r)
	return append([]byte{wireVersion}, b...), err
}

func (m *Meta) answer(ctx context.Context, q request) result {
	if len(q.body) < 3 || q.body[0] != wireVersion {
		return refuse(codeInvalid, "request of another version")
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	switch op, hops, body := q.body[1], q.body[2], q.body[3:]; op {
	case opPropose:
		return m.answerProposal(ctx, q.from, hops, body)
	case opStatus:
		s := m.status()
		return result{Status: &s}
	case opSync:
		return m.answerSync(ctx)
	default:
		return refuse(codeInvalid, "unknown operation %d", op)
	}
}

// answerProposal commits as the leader, or passes on once: two followers with
// opposite ideas of the leader must not play ball.
func (m *Meta) answerProposal(ctx context.Context, from string, hops byte, entry []byte) result {
	var r result
	var err error
	leader := m.Leader()
	switch {
	case m.IsLeader():
		r, err = m.applyHere(ctx, entry)
	case hops == 0 && leader != "" && leader != m.cfg.Peer && leader != from:
		r, err = m.ask(ctx, leader, opPropose, 1, entry)
	case !m.State().Initialized():
		return result{Code: codeNotInitialized}
	default:
		return result{Code: codeNoLeader}
	}
	if err != nil {
		return refuse(codeNoLeader, "%v", err) // unknown outcome: the origin tries again
	}
	return r
}

func (m *Meta) answerSync(ctx context.Context) result {
	if !m.IsLeader() {
		return result{Code: codeNoLeader}
	}
	applied, err := m.committed(ctx)
	if err != nil {
		return refuse(codeNoLeader, "%v", err)
	}
	s := m.status()
	s.Applied = applied
	return result{Status: &s}
}

func (m *Meta) status() status {
	return status{
		Peer:      m.cfg.Peer,
		ClusterID: m.State().ClusterID,
		Leader:    m.Leader(),
		Standing:  m.raft.State() == raft.Candidate,
		SlowDisk:  m.slowDisk(),
		Term:      m.raft.CurrentTerm(),
		Last:      m.raft.LastIndex(),
		Commit:    m.raft.CommitIndex(),
		Applied:   m.raft.AppliedIndex(),
	}
}
