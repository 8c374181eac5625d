package shard

import "fmt"

// parkAbove is how many bytes of pending blocks and their marks a restore keeps
// in memory. A snapshot that was taken while the store was away for an hour has
// gigabytes of them.
const parkAbove = 16 << 20

// parking is where a restore puts the pending blocks that memory has no room
// for: data that came with a leader's snapshot, which the log does not have, and
// marks. Like those of the spill its files have no name and end with the
// process. It belongs to the machine, under its lock once the restore is done.
type parking struct {
	spill
	above int
	bytes int
}

func newParking(dir string, above int) *parking {
	return &parking{spill: spill{dir: dir}, above: above}
}

// put parks a block of a snapshot if memory has no room for it.
func (k *parking) put(b *pendingBlock) error {
	size := len(b.marks) * 8
	if b.pinned {
		size += len(b.data)
	}
	if k.bytes += size; k.bytes <= k.above || b.allRows() == 0 {
		return nil
	}
	var err error
	if b.spilled, b.offset, err = k.write(b, b.marks); err != nil {
		return err
	}
	b.readings, b.marks = len(b.marks), nil
	if !b.pinned {
		return nil
	}
	if b.parked, b.at, err = k.append(b.index, b.data); err != nil {
		return err
	}
	b.size, b.data = len(b.data), nil
	return nil
}

// readParked reads the data of a parked block.
func readParked(file *spillFile, at int64, size int, index uint64) ([]byte, error) {
	data := make([]byte, size)
	if _, err := file.ReadAt(data, at); err != nil {
		return nil, fmt.Errorf("read parked block %d: %w", index, err)
	}
	return data, nil
}
