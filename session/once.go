package session

import (
	"github.com/cespare/xxhash/v2"

	"github.com/sluice-iot/sluice/internal/wire"
)

func (st *State) receive(s *state, id uint16) (Status, []byte) {
	for _, x := range s.received {
		if x.id == id {
			return StatusOK, wire.AppendBool(wire.AppendUint(nil, x.number), x.delivered)
		}
	}
	if len(s.received) >= receivedMax {
		return StatusFull, nil
	}
	st.serial++
	s.received = append(s.received, receipt{id: id, number: st.serial})
	return StatusOK, wire.AppendBool(wire.AppendUint(nil, st.serial), false)
}

// Print is the fingerprint by which a publish is known: 0 for one that has no key, and
// for no other.
func (k Key) Print() uint64 {
	if k == (Key{}) {
		return 0
	}
	return max(k.hash(), 1)
}

func (k Key) hash() uint64 {
	return xxhash.Sum64(wire.AppendUint(append([]byte(k.Client), 0), k.Number))
}

func (st *State) repeats(k Key) bool {
	_, ok := st.known[k.hash()]
	return ok
}

func (st *State) remember(k Key) {
	h := k.hash()
	st.known[h] = struct{}{}
	st.keys = append(st.keys, h)
	if len(st.keys) > keysMax {
		delete(st.known, st.keys[0])
		st.keys = st.keys[1:]
	}
}
