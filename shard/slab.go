package shard

// slab is an array that grows without moving what it holds: index -> value in
// chunks. Values without pointers cost the garbage collector nothing, whatever
// their number.
//
// A view of it stays as it was while the slab goes on: a chunk that a view holds
// is copied before at gives out a pointer into it. The owner of the slab and of
// its lock takes and releases views; reading one needs no lock.
type slab[T any] struct {
	chunks [][]T
	own    []uint64 // per chunk: the generation in which it was made or copied
	n      uint32
	gen    uint64 // raised by every view
	views  int    // that are not released
}

// slabChunk is the number of values in a chunk: large enough that the chunk
// list stays short, small enough that an almost empty shard stays small and that
// copying the chunks that one block touches takes a millisecond or two (512
// messages of devices far apart, 15 KiB of detectors each).
const slabChunk = 32

// add appends the zero value and returns its index.
func (s *slab[T]) add() uint32 {
	if int(s.n) == len(s.chunks)*slabChunk {
		s.chunks = append(s.chunks, make([]T, slabChunk))
		s.own = append(s.own, s.gen)
	}
	s.n++
	return s.n - 1
}

// at returns a value to be changed. The pointer is good until the next view.
func (s *slab[T]) at(i uint32) *T {
	c := i / slabChunk
	if s.views > 0 && s.own[c] != s.gen {
		s.copy(c)
	}
	return &s.chunks[c][i%slabChunk]
}

// peek returns a value that the caller only reads.
func (s *slab[T]) peek(i uint32) *T { return &s.chunks[i/slabChunk][i%slabChunk] }

func (s *slab[T]) copy(c uint32) {
	fresh := make([]T, slabChunk)
	copy(fresh, s.chunks[c])
	s.chunks[c], s.own[c] = fresh, s.gen
}

// shared reports whether a view may hold what the values point to.
func (s *slab[T]) shared() bool { return s.views > 0 }

// view is the slab as it is now.
func (s *slab[T]) view() slabView[T] {
	s.views++
	s.gen++
	// The last chunk may have room that the slab fills while the view is read:
	// the view never looks behind n, and at copies before it writes. add does not
	// write, it gives out zero values.
	return slabView[T]{chunks: append([][]T(nil), s.chunks...), n: s.n}
}

// release ends a view; every view is released once.
func (s *slab[T]) release() { s.views-- }

// slabView is a slab at one moment.
type slabView[T any] struct {
	chunks [][]T
	n      uint32
}

func (v *slabView[T]) at(i uint32) *T { return &v.chunks[i/slabChunk][i%slabChunk] }

// pass lets go of what lies before i, so that copies are not kept for longer
// than they are read.
func (v *slabView[T]) pass(i uint32) {
	for c := i / slabChunk; c > 0 && v.chunks[c-1] != nil; c-- {
		v.chunks[c-1] = nil
	}
}
