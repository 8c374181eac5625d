package shard

import (
	"bytes"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry/block"
)

// A shard's quarantine keeps what could not be parsed until somebody has looked
// at it, within these bounds; the oldest goes first.
const (
	quarantineMax      = 10_000
	quarantineBytesMax = 16 << 20
	quarantineAge      = 7 * 24 * 3600 * 1_000_000 // microseconds
)

// Quarantined is one message that is not telemetry.
type Quarantined struct {
	ID       uint64 // within its shard, ascending
	Device   string
	Topic    string
	Received int64 // microseconds
	Reason   string
	Payload  []byte
}

type quarantine struct {
	items []Quarantined
	next  uint64 // id of the last item added
	bytes int
}

func (q *Quarantined) size() int {
	return len(q.Device) + len(q.Topic) + len(q.Reason) + len(q.Payload) + 64
}

func (q *quarantine) add(now int64, b *block.Block, e *block.Entry) {
	item := b.Quarantine[e.Quarantined]
	q.next++
	q.push(Quarantined{
		ID: q.next, Device: strings.Clone(b.Devices[e.Device]), Topic: strings.Clone(item.Topic),
		Received: e.Received, Reason: strings.Clone(item.Reason), Payload: bytes.Clone(item.Payload),
	})
	q.expire(now)
}

func (q *quarantine) push(item Quarantined) {
	q.items = append(q.items, item)
	q.bytes += item.size()
	for len(q.items) > quarantineMax || q.bytes > quarantineBytesMax && len(q.items) > 1 {
		q.drop(0)
	}
}

// expire lets go of what is older than quarantineAge at now, the shard's clock.
func (q *quarantine) expire(now int64) {
	for len(q.items) > 0 && now-q.items[0].Received > quarantineAge {
		q.drop(0)
	}
}

func (q *quarantine) drop(i int) {
	q.bytes -= q.items[i].size()
	if i == 0 { // the common case must not move all the others
		q.items[0] = Quarantined{}
		q.items = q.items[1:]
		return
	}
	q.items = slices.Delete(q.items, i, i+1)
}

func (q *quarantine) find(id uint64) (int, bool) {
	return slices.BinarySearchFunc(q.items, id, func(a Quarantined, id uint64) int {
		switch {
		case a.ID < id:
			return -1
		case a.ID > id:
			return 1
		}
		return 0
	})
}

func (q *quarantine) remove(id uint64) {
	if i, ok := q.find(id); ok {
		q.drop(i)
	}
}

func (q *quarantine) append(b []byte) []byte {
	b = wire.AppendUint(b, q.next)
	return appendQuarantined(b, q.items)
}

func (q *quarantine) decode(r *wire.Reader) {
	q.next = r.Uint()
	for _, item := range decodeQuarantined(r) {
		q.push(item)
	}
}

func appendQuarantined(b []byte, items []Quarantined) []byte {
	b = wire.AppendUint(b, uint64(len(items)))
	for i := range items {
		it := &items[i]
		b = wire.AppendUint(b, it.ID)
		b = wire.AppendString(b, it.Device)
		b = wire.AppendString(b, it.Topic)
		b = wire.AppendInt(b, it.Received)
		b = wire.AppendString(b, it.Reason)
		b = wire.AppendString(b, it.Payload)
	}
	return b
}

func decodeQuarantined(r *wire.Reader) []Quarantined {
	var items []Quarantined
	for range r.Count(6) {
		items = append(items, Quarantined{
			ID: r.Uint(), Device: r.String(), Topic: r.String(), Received: r.Int(), Reason: r.String(), Payload: bytes.Clone(r.Blob()),
		})
	}
	return items
}
