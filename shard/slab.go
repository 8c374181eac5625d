package shard

// slab is an array that grows without moving what it holds: index -> value in
// chunks. Values without pointers cost the garbage collector nothing, whatever
// their number.
type slab[T any] struct {
	chunks [][]T
	n      uint32
}

// slabChunk is the number of values in a chunk: large enough that the chunk
// list stays short, small enough that an almost empty shard stays small.
const slabChunk = 256

// add appends the zero value and returns its index.
func (s *slab[T]) add() uint32 {
	if int(s.n) == len(s.chunks)*slabChunk {
		s.chunks = append(s.chunks, make([]T, slabChunk))
	}
	s.n++
	return s.n - 1
}

func (s *slab[T]) at(i uint32) *T { return &s.chunks[i/slabChunk][i%slabChunk] }
