package session

import (
	"fmt"

	"github.com/sluice-iot/sluice/internal/wire"
)

// stateVersion is the format version of a state.
const stateVersion = 4

const (
	connectedFlag = 1
	durableState  = 2
)

func (s *state) append(dst []byte, ids map[*Message]uint64) []byte {
	flags := byte(0)
	if s.connected {
		flags |= connectedFlag
	}
	if s.durable {
		flags |= durableState
	}
	dst = wire.AppendUint(wire.AppendString(wire.AppendString(dst, s.client), s.identity), s.epoch)
	dst = wire.AppendUint(wire.AppendString(dst, s.owner.Node), s.owner.Epoch)
	dst = wire.AppendInt(wire.AppendInt(append(dst, flags), s.since), s.expiry)
	dst = wire.AppendUint(wire.AppendUint(dst, uint64(s.limits.count)), uint64(s.limits.bytes))
	dst = wire.AppendInt(dst, s.limits.age)
	dst = wire.AppendUint(dst, uint64(len(s.subs)))
	for _, v := range s.subs {
		dst = v.Append(dst)
	}
	dst = wire.AppendUint(wire.AppendUint(wire.AppendUint(dst, s.sent), s.first), uint64(len(s.queue)))
	for i := range s.queue {
		dst = s.queue[i].appendState(dst, ids)
	}
	dst = wire.AppendUint(dst, uint64(len(s.received)))
	for _, x := range s.received {
		dst = wire.AppendBool(wire.AppendUint(wire.AppendUint(dst, uint64(x.id)), x.number), x.delivered)
	}
	dst = wire.AppendInt(wire.AppendString(dst, s.will), s.willDelay)
	return wire.AppendInt(wire.AppendInt(dst, s.willAt), s.endAt)
}

const (
	releasedFlag = 8
	ackedFlag    = 16
)

func (it *Item) flags() byte {
	f := it.QoS & qosMask
	if it.Retain {
		f |= retainFlag
	}
	if it.Released {
		f |= releasedFlag
	}
	if it.acked {
		f |= ackedFlag
	}
	return f
}

func (it *Item) setFlags(f byte) {
	it.QoS, it.Retain, it.Released, it.acked = min(f&qosMask, 2), f&retainFlag != 0, f&releasedFlag != 0, f&ackedFlag != 0
}

func (it *Item) appendState(dst []byte, ids map[*Message]uint64) []byte {
	dst = append(dst, it.flags())
	if it.acked {
		return dst
	}
	dst = wire.AppendUint(wire.AppendInt(dst, it.at), ids[it.Message])
	return appendIDs(dst, it.IDs)
}

func appendIDs(dst []byte, ids []uint32) []byte {
	dst = wire.AppendUint(dst, uint64(len(ids)))
	for _, id := range ids {
		dst = wire.AppendUint(dst, uint64(id))
	}
	return dst
}

func decodeIDs(r *wire.Reader) (ids []uint32) {
	for range r.Count(1) {
		ids = append(ids, uint32(r.Uint()))
	}
	return ids
}

// append encodes an item with its message, for another node or the log.
func (it *Item) append(dst []byte) []byte {
	dst = wire.AppendUint(append(dst, it.flags()), it.Seq)
	return it.Message.Append(appendIDs(dst, it.IDs))
}

func decodeItem(r *wire.Reader) (it Item) {
	it.setFlags(r.Byte() &^ ackedFlag)
	it.Seq = r.Uint()
	it.IDs = decodeIDs(r)
	it.Message = DecodeMessage(r)
	return it
}

// AppendItems encodes items for another node.
func AppendItems(dst []byte, items []Item) []byte {
	dst = wire.AppendUint(dst, uint64(len(items)))
	for i := range items {
		dst = items[i].append(dst)
	}
	return dst
}

// DecodeItems reads what AppendItems wrote.
func DecodeItems(r *wire.Reader) (items []Item) {
	for range r.Count(10) {
		items = append(items, decodeItem(r))
	}
	return items
}

// Decode reads what Append wrote into a new state.
func Decode(r *wire.Reader) (*State, error) {
	st := New()
	if v := r.Byte(); v != stateVersion {
		return nil, fmt.Errorf("state of sessions has version %d, this node reads version %d: upgrade it", v, stateVersion)
	}
	st.now, st.serial = r.Int(), r.Uint()
	messages := []*Message{nil}
	for range r.Count(6) {
		messages = append(messages, DecodeMessage(r))
	}
	at := func() *Message {
		i := r.Uint()
		if i >= uint64(len(messages)) {
			return nil
		}
		return messages[i]
	}
	for range r.Count(10) {
		s := decodeSession(r, at)
		if r.Err() != nil {
			return nil, r.Err()
		}
		if s == nil {
			return nil, fmt.Errorf("session without its messages: %w", wire.ErrShort)
		}
		st.adopt(s)
	}
	for range r.Count(2) {
		f, turn := r.String(), r.Uint()
		if g := st.groups[f]; g != nil {
			g.turn = turn
		}
	}
	for range r.Count(1) {
		if m := at(); m != nil {
			st.retained.put(m)
			st.kept += m.Bytes()
		}
	}
	st.nextWill = r.Uint()
	for range r.Count(3) {
		w := Will{ID: r.Uint(), Client: r.String(), Message: at()}
		if w.Message != nil {
			st.wills = append(st.wills, w)
		}
	}
	for range r.Count(4) {
		node := r.String()
		st.origins[node] = &origin{r.Uint(), r.Uint(), clone(r.Blob())}
	}
	for range r.Count(1) {
		k := r.Uint()
		st.keys = append(st.keys, k)
		st.known[k] = struct{}{}
	}
	st.drops = Drops{r.Uint(), r.Uint(), r.Uint()}
	st.effects = Effects{}
	return st, r.Err()
}

// decodeSession returns nil when the session refers to a message that is not there.
func decodeSession(r *wire.Reader, at func() *Message) *state {
	s := &state{client: r.String(), identity: r.String(), epoch: r.Uint(), owner: Owner{r.String(), r.Uint()}}
	flags := r.Byte()
	s.connected, s.durable = flags&connectedFlag != 0, flags&durableState != 0
	s.since, s.expiry = r.Int(), r.Int()
	s.limits = limits{int(min(r.Uint(), queueMaxMax)), int(min(r.Uint(), queueBytesMax)), r.Int()}
	for range r.Count(3) {
		s.subs.Put(&sub{s, DecodeSubscription(r)})
	}
	s.sent = r.Uint()
	s.first = max(r.Uint(), 1)
	n := r.Count(1)
	for i := range n {
		var it Item
		it.setFlags(r.Byte())
		it.Seq = s.first + uint64(i)
		if !it.acked {
			it.at, it.Message = r.Int(), at()
			it.IDs = decodeIDs(r)
			if it.Message == nil {
				return nil
			}
			s.live++
			s.bytes += it.Message.Bytes()
		}
		s.queue = append(s.queue, it)
	}
	for range r.Count(3) {
		s.received = append(s.received, receipt{uint16(r.Uint()), r.Uint(), r.Bool()})
	}
	if will := r.Blob(); len(will) > 0 {
		w := wire.NewReader(will)
		if s.will = pack(DecodeMessage(w)); w.Err() != nil {
			return nil
		}
	}
	s.willDelay = r.Int()
	s.willAt, s.endAt = r.Int(), r.Int()
	return s
}

// adopt puts a decoded session into the tables that follow from it.
func (st *State) adopt(s *state) {
	st.sessions[s.client] = s
	s.owner = st.ownerOf(s.owner.Node, s.owner.Epoch)
	for _, v := range s.subs {
		st.enlist(v)
	}
	if s.connected {
		st.owners[s.owner]++
	}
	if len(s.queue) > 0 {
		st.backlog[s] = struct{}{}
	}
	st.arm(s)
}
