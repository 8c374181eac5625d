package session

import (
	"cmp"
	"slices"

	"github.com/sluice-iot/sluice/internal/wire"
)

// Apply applies one entry of the log: the leader's clock in microseconds and a
// batch. The answer is for the node that proposed it, see DecodeAnswers.
func (st *State) Apply(now int64, batch []byte) []byte {
	st.advance(now)
	r := wire.NewReader(batch)
	node, epoch, seq := r.String(), r.Uint(), r.Uint()
	o := st.origins[node]
	if node != "" && o != nil && (epoch < o.epoch || epoch == o.epoch && seq <= o.seq) {
		if epoch == o.epoch && seq == o.seq {
			return o.answers
		}
		return wire.AppendUint(nil, 0) // nobody waits for it any more
	}
	n := r.Count(1)
	answers := wire.AppendUint(nil, uint64(n))
	for range n {
		status, body := st.op(r.Blob())
		answers = wire.AppendString(append(answers, byte(status)), body)
	}
	if node != "" && r.Err() == nil {
		if o == nil {
			o = &origin{}
			st.origins[node] = o
		}
		o.epoch, o.seq, o.answers = epoch, seq, answers
	}
	return answers
}

// op applies one operation.
func (st *State) op(b []byte) (Status, []byte) {
	r := wire.NewReader(b)
	kind := opKind(r.Byte())
	switch kind {
	case opConnect:
		c := decodeConnect(r)
		return st.whole(r, func() (Status, []byte) { return st.connect(&c) })
	case opMessage:
		return st.message(r)
	case opGone:
		node, epoch := r.String(), r.Uint()
		return st.whole(r, func() (Status, []byte) { st.gone(node, epoch); return StatusOK, nil })
	case opWillSent:
		for range r.Count(1) {
			st.sent(r.Uint())
		}
		return StatusOK, nil
	case opTick:
		return StatusOK, nil
	}
	ref := decodeRef(r)
	s := st.sessions[ref.Client]
	if r.Err() != nil {
		return StatusInvalid, nil
	}
	if s == nil || s.epoch != ref.Epoch {
		return StatusFenced, nil
	}
	return st.sessionOp(kind, s, r)
}

// whole runs f if the operation was read to its end.
func (st *State) whole(r *wire.Reader, f func() (Status, []byte)) (Status, []byte) {
	if r.Err() != nil {
		return StatusInvalid, nil
	}
	return f()
}

// sessionOp applies an operation of a session's owner.
func (st *State) sessionOp(kind opKind, s *state, r *wire.Reader) (Status, []byte) {
	st.touch(s)
	switch kind {
	case opDisconnect:
		will, minDelay, expiry, sent := r.Bool(), r.Int(), r.Int(), r.Uint()
		return st.whole(r, func() (Status, []byte) {
			s.expiry = max(expiry, 0)
			if s.connected {
				s.sent = min(sent, s.last())
				st.leaveAs(s, will, minDelay)
			} else if !will {
				s.will = ""
			}
			return StatusOK, nil
		})
	case opAttach:
		st.attach(s)
		return StatusOK, nil
	case opSubscribe:
		return st.subscribe(s, r)
	case opAck:
		seq := r.Uint()
		return st.whole(r, func() (Status, []byte) { st.ack(s, seq); return StatusOK, nil })
	case opRelease:
		seq := r.Uint()
		return st.whole(r, func() (Status, []byte) {
			if it := s.item(seq); it != nil && it.QoS == 2 {
				it.Released = true
			}
			return StatusOK, nil
		})
	case opReceive:
		id := uint16(r.Uint())
		return st.whole(r, func() (Status, []byte) { return st.receive(s, id) })
	case opDelivered:
		id := uint16(r.Uint())
		return st.whole(r, func() (Status, []byte) {
			for i := range s.received {
				if s.received[i].id == id {
					s.received[i].delivered = true
				}
			}
			return StatusOK, nil
		})
	case opForget:
		id := uint16(r.Uint())
		return st.whole(r, func() (Status, []byte) {
			s.received = slices.DeleteFunc(s.received, func(x receipt) bool { return x.id == id })
			return StatusOK, nil
		})
	case opEnqueue:
		it := decodeItem(r)
		return st.whole(r, func() (Status, []byte) { st.enqueue(s, it); return StatusOK, nil })
	}
	return StatusInvalid, nil
}

// ownerOf is a process whose name is not kept once more for every session.
func (st *State) ownerOf(node string, epoch uint64) Owner {
	for o := range st.owners {
		if o.Node == node {
			return Owner{o.Node, epoch}
		}
	}
	return Owner{node, epoch}
}

// sent takes away a will that reached its subscribers. They are in the order of their
// numbers and sent in about that order: what is in front moves, when a whole fleet is
// lost that is little.
func (st *State) sent(id uint64) {
	at, ok := slices.BinarySearchFunc(st.wills, id, func(w Will, id uint64) int { return cmp.Compare(w.ID, id) })
	if !ok {
		return
	}
	copy(st.wills[1:], st.wills[:at])
	st.wills[0] = Will{}
	if st.wills = st.wills[1:]; len(st.wills) == 0 {
		st.wills = nil
	}
}
