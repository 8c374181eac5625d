package shard

import "testing"

// TestManyShardsShareTheMemoryOfANode: what waits for the store takes as much
// memory with 64 shards as with eight.
func TestManyShardsShareTheMemoryOfANode(t *testing.T) {
	r := newRig(t)
	s := &Shard{fsm: &fsm{machine: r.machine}, flush: &flusher{}}
	for _, c := range []struct {
		shards, data int
		marks        int64
	}{{1, pendingDataBytesMax, marksMax}, {8, pendingDataBytesMax, nodeMarksMax / 8}, {32, nodeDataBytesMax / 32, nodeMarksMax / 32}, {256, shardDataBytes, shardMarks}} {
		s.flush.marksMax.Store(marksMax)
		s.shareMemory(c.shards)
		if got := s.flush.marksMax.Load(); r.pending.dataMax != c.data || got != c.marks {
			t.Errorf("%d shards: %d bytes and %d marks each, want %d and %d", c.shards, r.pending.dataMax, got, c.data, c.marks)
		}
	}
	s.shareMemory(256)
	for i := range 20 {
		r.block(heavy(i+1, 300<<10))
	}
	if r.pending.dataBytes > shardDataBytes || r.pending.forgotten == 0 {
		t.Errorf("%d bytes of blocks in memory, at most %d allowed", r.pending.dataBytes, shardDataBytes)
	}
}
