package shard

import (
	"fmt"
	"math"

	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// rowKey is what tells the rows of a batch apart.
type rowKey struct {
	device, sensor       string
	time, received, bits int64
}

func rowKeyOf(b *telemetry.Batch, r *telemetry.Row) rowKey {
	return rowKey{b.Devices[r.Device], b.Sensors[r.Sensor], r.Time, r.Received, int64(math.Float64bits(r.Value))}
}

// sources finds the messages that rows of a batch came in, in the blocks that it
// was made of: one block after the other is in memory. Rows that are equal in
// everything take their messages in turn.
func (f *flusher) sources(batch *telemetry.Batch, blocks []*pendingBlock, want func(mark) bool, rows []int, give func(int, *telemetry.Source) error) error {
	missing := make(map[rowKey][]int, len(rows))
	for _, i := range rows {
		k := rowKeyOf(batch, &batch.Rows[i])
		missing[k] = append(missing[k], i)
	}
	var b block.Block
	var s telemetry.Source
	for _, p := range blocks {
		if len(missing) == 0 {
			break
		}
		var failed error
		err := f.eachReading(p, &b, func(e *block.Entry, rd *block.Reading, k mark) {
			if failed != nil || !want(k) {
				return
			}
			id := rowKey{b.Devices[e.Device], b.Sensors[rd.Sensor], e.Time, e.Received, int64(math.Float64bits(rd.Value.Float64()))}
			of, ok := missing[id]
			if !ok {
				return
			}
			if len(of) > 1 {
				missing[id] = of[1:]
			} else {
				delete(missing, id)
			}
			position := positionOf(&b, e)
			s.ID = fmt.Sprintf("%d-%d-%d", batch.Shard, p.index, position)
			b.Message(position, &s.Message)
			failed = give(of[0], &s)
		})
		if failed != nil {
			return failed
		}
		if err != nil {
			return fmt.Errorf("find the messages of refused rows: %w", err)
		}
	}
	return nil
}

// positionOf is the place of a message in its block. Entries are in the order of
// their readings, and e has some.
func positionOf(b *block.Block, e *block.Entry) int {
	lo, hi := 0, len(b.Messages)
	for lo < hi {
		if mid := (lo + hi) / 2; b.Messages[mid].Readings.To <= e.Readings.From {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}
