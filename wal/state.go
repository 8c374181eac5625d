package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// state is the small state of one group: everything but where its entries are.
// It changes only by apply, the same at run time (after the sync) and when a log
// is opened, so that both agree by construction.
//
// The entries of a group are first..last; both are 0 when there are none.
//
// detached means that raft has deleted its whole log while the floor still
// protects first..last. Raft does that after it installed a snapshot, when the
// first entry conflicts, and when TrailingLogs is 0. For raft the log is empty
// then; what becomes of the protected entries shows with the next append: behind
// last it was a compaction and they stay, anywhere else they belong to a past
// that was replaced and go.
type state struct {
	first, last uint64
	detached    bool
	asked       uint64 // raft needs no entry <= asked
	floor       uint64 // the owner needs no entry <= floor
	commit      uint64 // latest stored raft commit index
}

var (
	errGap     = errors.New("entry does not follow the last one")
	errNoEntry = errors.New("no such entry")
)

// visible is the range that raft sees.
func (s *state) visible() (first, last uint64) {
	if s.detached {
		return 0, 0
	}
	return s.first, s.last
}

func (s *state) holds(index uint64) bool {
	return index != 0 && index >= s.first && index <= s.last
}

func (s *state) clear() { s.first, s.last, s.detached = 0, 0, false }

// append takes the entry index, whose record carries the staged commit index.
func (s *state) append(index, staged uint64) error {
	switch {
	case index == 0:
		return errGap
	case s.last != 0 && index == s.last+1:
		s.last, s.detached = index, false
	case s.last == 0 || s.detached:
		s.first, s.last, s.detached = index, index, false
		s.asked = min(s.asked, index-1)
	default:
		return errGap
	}
	if staged != 0 {
		s.commit = staged
	}
	return nil
}

// truncate voids the entries >= from.
func (s *state) truncate(from uint64) error {
	if !s.holds(from) || s.detached {
		return errNoEntry
	}
	if from == s.first {
		s.clear()
	} else {
		s.last = from - 1
	}
	s.asked = min(s.asked, from-1)
	return nil
}

// prefix notes what raft and the owner no longer need and drops what both agree on.
func (s *state) prefix(asked, floor uint64) {
	s.asked, s.floor = max(s.asked, asked), max(s.floor, floor)
	cut := min(s.asked, s.floor)
	switch {
	case s.last == 0 || cut < s.first:
	case cut >= s.last:
		s.clear()
	default:
		s.first = cut + 1
	}
}

// detach hides every entry from raft and drops those that the floor lets go.
func (s *state) detach(floor uint64) {
	if s.last == 0 {
		s.prefix(0, floor)
		return
	}
	s.detached = true
	s.prefix(s.last, floor)
}

// apply changes s as the record r says. Records that do not concern a group's
// range change nothing.
func (s *state) apply(r *record) error {
	switch r.typ {
	case typeEntry:
		return s.append(r.index, stagedCommit(r))
	case typeTruncate:
		return s.truncate(r.index)
	case typePrefix, typeDetach:
		if len(r.body) != 8 {
			return errors.New("floor is missing")
		}
		floor := binary.LittleEndian.Uint64(r.body)
		if r.typ == typePrefix {
			s.prefix(r.index, floor)
		} else {
			s.detach(floor)
		}
	case typeRemove:
		*s = state{}
	}
	return nil
}

// stableBytesMax bounds a key plus a value of the StableStore: raft stores two
// terms and a candidate's address, and every segment starts with a copy.
const stableBytesMax = 4 << 10

func stableBody(key, value []byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(len(key)))
	b = append(b, key...)
	return append(b, value...)
}

func readStable(b []byte) (key string, value []byte, err error) {
	if len(b) < 2 {
		return "", nil, errors.New("stable record is cut short")
	}
	n := int(binary.LittleEndian.Uint16(b))
	if len(b) < 2+n {
		return "", nil, errors.New("stable record is cut short")
	}
	return string(b[2 : 2+n]), slices.Clone(b[2+n:]), nil
}

// groupImage is one group in a checkpoint.
type groupImage struct {
	id     uint32
	state  state
	stable map[string][]byte
}

const imageDetached = 1

func appendImage(b []byte, g *groupImage) []byte {
	b = binary.LittleEndian.AppendUint32(b, g.id)
	s := &g.state
	for _, v := range [...]uint64{s.first, s.last, s.asked, s.floor, s.commit} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	var flags byte
	if s.detached {
		flags = imageDetached
	}
	b = append(b, flags, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(g.stable)))
	for _, key := range slices.Sorted(maps.Keys(g.stable)) {
		body := stableBody([]byte(key), g.stable[key])
		b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
		b = append(b, body...)
	}
	return b
}

const imageBytes = 4 + 5*8 + 4

// readCheckpoint decodes the body of a checkpoint record.
func readCheckpoint(b []byte) ([]groupImage, error) {
	short := errors.New("checkpoint is cut short")
	if len(b) < 4 {
		return nil, short
	}
	count := binary.LittleEndian.Uint32(b)
	b = b[4:]
	if int64(count)*imageBytes > int64(len(b)) {
		return nil, short
	}
	images := make([]groupImage, 0, count)
	for range count {
		if len(b) < imageBytes {
			return nil, short
		}
		g := groupImage{id: binary.LittleEndian.Uint32(b), stable: map[string][]byte{}}
		for i, v := range []*uint64{&g.state.first, &g.state.last, &g.state.asked, &g.state.floor, &g.state.commit} {
			*v = binary.LittleEndian.Uint64(b[4+8*i:])
		}
		g.state.detached = b[44]&imageDetached != 0
		if g.state.first > g.state.last || (g.state.first == 0) != (g.state.last == 0) {
			return nil, fmt.Errorf("checkpoint: range %d..%d of group %d is impossible", g.state.first, g.state.last, g.id)
		}
		keys := int(binary.LittleEndian.Uint16(b[46:]))
		b = b[imageBytes:]
		for range keys {
			if len(b) < 4 || uint64(len(b)-4) < uint64(binary.LittleEndian.Uint32(b)) {
				return nil, short
			}
			n := int(binary.LittleEndian.Uint32(b))
			key, value, err := readStable(b[4 : 4+n])
			if err != nil {
				return nil, fmt.Errorf("checkpoint: %w", err)
			}
			g.stable[key] = value
			b = b[4+n:]
		}
		images = append(images, g)
	}
	return images, nil
}
