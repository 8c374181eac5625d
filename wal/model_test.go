package wal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"

	"github.com/hashicorp/raft"
	"github.com/sluice-iot/sluice/internal/vfs"
)

// modelGroup is what a group should hold, in the simplest form that can be wrong
// in no interesting way.
type modelGroup struct {
	terms    map[uint64]uint64 // index -> term; the payload follows from both
	last     uint64
	hidden   bool // raft deleted everything
	asked    uint64
	floor    uint64
	stable   map[string]string
	numbered uint64 // highest index ever used, to jump to
}

// model is the state of a whole log.
type model map[uint32]*modelGroup

func (m model) group(id uint32) *modelGroup {
	if m[id] == nil {
		m[id] = &modelGroup{terms: map[uint64]uint64{}, stable: map[string]string{}}
	}
	return m[id]
}

func (m model) clone() model {
	out := model{}
	for id, g := range m {
		c := *g
		c.terms, c.stable = maps.Clone(g.terms), maps.Clone(g.stable)
		out[id] = &c
	}
	return out
}

// first is the oldest entry that must be there.
func (g *modelGroup) first() uint64 {
	first := uint64(math.MaxUint64)
	for i := range g.terms {
		first = min(first, i)
	}
	if len(g.terms) == 0 {
		return 0
	}
	return first
}

func (g *modelGroup) shrink() {
	for i := range g.terms {
		if i <= min(g.asked, g.floor) {
			delete(g.terms, i)
		}
	}
	if len(g.terms) == 0 {
		g.last, g.hidden = 0, false
	}
}

// step is one operation on a log. Steps are data, so that a failing list can be
// printed and shrunk.
type step struct {
	Kind  string
	Group uint32
	From  uint64
	To    uint64
	Term  uint64
	Size  int
}

func (s step) logs(n uint64) []*raft.Log { return entries(s.Group, s.From, s.From+n-1, s.Term, s.Size) }

func (s step) count() uint64 { return s.To - s.From + 1 }

// expect changes the model. partial < count stores only that many entries.
func (m model) expect(s step, partial uint64) {
	g := m.group(s.Group)
	switch s.Kind {
	case "store":
		if partial == 0 {
			return
		}
		if s.From != g.last+1 || g.last == 0 {
			clear(g.terms)
			g.asked = min(g.asked, s.From-1)
		}
		g.hidden = false
		for i := s.From; i < s.From+partial; i++ {
			g.terms[i] = s.Term
			g.last = i
		}
		g.numbered = max(g.numbered, g.last)
	case "truncate":
		for i := s.From; i <= g.last; i++ {
			delete(g.terms, i)
		}
		g.last = s.From - 1
		g.asked = min(g.asked, g.last)
		if len(g.terms) == 0 {
			g.last = 0
		}
	case "prefix":
		g.asked = max(g.asked, s.To)
		g.shrink()
	case "all":
		g.asked, g.hidden = max(g.asked, g.last), true
		g.shrink()
	case "floor":
		g.floor = max(g.floor, s.To)
		g.shrink()
	case "set":
		g.stable[fmt.Sprint("key", s.From)] = fmt.Sprint(s.To)
	case "remove":
		delete(m, s.Group)
	}
}

// do carries the step out on a log.
func (s step) do(l *Log) error {
	g := l.Group(s.Group)
	switch s.Kind {
	case "store":
		return g.StoreLogs(s.logs(s.count()))
	case "truncate":
		last, err := g.LastIndex()
		return errors.Join(err, g.DeleteRange(s.From, last))
	case "prefix":
		first, err := g.FirstIndex()
		return errors.Join(err, g.DeleteRange(first, s.To))
	case "all":
		first, err := g.FirstIndex()
		last, err2 := g.LastIndex()
		return errors.Join(err, err2, g.DeleteRange(first, last))
	case "floor":
		g.SetFloor(s.To)
		return l.janitor.maintain()
	case "set":
		return g.Set([]byte(fmt.Sprint("key", s.From)), []byte(fmt.Sprint(s.To)))
	case "remove":
		return g.Remove()
	case "mark":
		return nil
	}
	panic(s.Kind)
}

// draw makes a step that is possible in m.
func (m model) draw(intn func(int) int, groups int) step {
	s := step{Group: uint32(intn(groups))}
	g := m.group(s.Group)
	pick := intn(20)
	visible := len(g.terms) > 0 && !g.hidden
	first := g.first()
	switch {
	case pick < 10 || !visible && pick < 16:
		s.Kind, s.Term, s.Size = "store", 1+uint64(intn(9)), intn(700)
		switch {
		case len(g.terms) == 0:
			s.From = g.numbered + 1 + uint64(intn(3))
		case g.hidden && intn(2) == 0:
			s.From = max(1, g.floor+1+uint64(intn(40)))
		default:
			s.From = g.last + 1
		}
		s.To = s.From + uint64(intn(12))
	case pick == 10 && visible:
		s.Kind, s.From = "truncate", first+1+uint64(intn(len(g.terms)))
		if s.From > g.last {
			s.Kind, s.From, s.To = "set", 0, 1
		}
	case pick <= 12 && visible:
		s.Kind, s.To = "prefix", first+uint64(intn(len(g.terms)))
		if s.To == g.last {
			s.Kind = "all"
		}
	case pick == 13 && visible:
		s.Kind = "all"
	case pick <= 16 && len(g.terms) > 0:
		s.Kind, s.To = "floor", first+uint64(intn(len(g.terms)))
	case pick == 19 && intn(8) == 0:
		s.Kind = "remove"
	default:
		s.Kind, s.From, s.To = "set", uint64(intn(3)), uint64(intn(1000))
	}
	return s
}

func drawSteps(seed uint64, n, groups int) []step {
	rng := rand.New(rand.NewPCG(seed, 77))
	m := model{}
	var steps []step
	for range n {
		s := m.draw(rng.IntN, groups)
		m.expect(s, s.count())
		steps = append(steps, s)
	}
	return steps
}

// agrees compares what a log holds with the model. Entries that the model has
// let go may still be there (a floor is stored lazily), nothing else may differ.
func (m model) agrees(get func(id uint32) held) error {
	for id, g := range m {
		h := get(id)
		if h.last != g.last && !(g.last == 0 && h.last <= g.asked) {
			return fmt.Errorf("group %d ends at %d, want %d", id, h.last, g.last)
		}
		for i, term := range g.terms {
			e, err := h.read(i)
			if err != nil {
				return fmt.Errorf("group %d, entry %d (of %d..%d): %w", id, i, g.first(), g.last, err)
			}
			if e.Term != term || len(e.Data) > 0 && !bytes.Equal(e.Data, payload(id, i, term, len(e.Data))) {
				return fmt.Errorf("group %d, entry %d has term %d, want %d", id, i, e.Term, term)
			}
		}
		if g.last != 0 && h.hidden != g.hidden {
			return fmt.Errorf("group %d is hidden from raft: %v, want %v", id, h.hidden, g.hidden)
		}
		if len(h.stable) != len(g.stable) {
			return fmt.Errorf("group %d has keys %v, want %v", id, h.stable, g.stable)
		}
		for k, v := range g.stable {
			if string(h.stable[k]) != v {
				return fmt.Errorf("group %d, key %s is %q, want %q", id, k, h.stable[k], v)
			}
		}
	}
	return nil
}

// held is what one group of a log, open or replayed, holds.
type held struct {
	last   uint64
	hidden bool
	stable map[string][]byte
	read   func(i uint64) (raft.Log, error)
}

func holds(l *Log) func(id uint32) held {
	return func(id uint32) held {
		g := l.Group(id)
		_, last := g.Retained()
		visible, _ := g.LastIndex()
		return held{last: last, hidden: last != 0 && visible == 0, stable: g.stable, read: func(i uint64) (e raft.Log, err error) {
			return e, g.GetLog(i, &e)
		}}
	}
}

// replayed reads a log without opening it for writing.
func replayed(fs vfs.FS, dir string) (func(id uint32) held, *replay, error) {
	p := &replay{fs: fs, dir: dir, readOnly: true, strict: true, keys: testKeys}
	if err := p.load(); err != nil {
		return nil, p, err
	}
	return func(id uint32) held {
		g := p.group(id)
		return held{last: g.state.last, hidden: g.state.detached, stable: g.stable, read: func(i uint64) (e raft.Log, err error) {
			if !g.state.holds(i) {
				return e, raft.ErrLogNotFound
			}
			loc := g.index.get(i)
			raw, err := p.byID[loc.segment].readRecord(loc)
			if err != nil {
				return e, err
			}
			r := parseRecord(raw)
			return e, readEntry(&r, &e)
		}}
	}, p, nil
}
