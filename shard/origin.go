package shard

import (
	"slices"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// Status says what the state machine did with a block.
type Status byte

// The statuses; the numbers travel between nodes.
const (
	StatusApplied Status = 1 // applied now or earlier; Outcomes tell of each message
	StatusGap     Status = 2 // blocks before it are missing: resend from Next
	StatusUnknown Status = 3 // of an old epoch, or older than is remembered: never acknowledge
	StatusInvalid Status = 4 // cannot be decoded; skipped for good
)

// Result is the state machine's answer to one block. Outcomes holds one entry
// per message; nil means that every message was applied.
type Result struct {
	Status   Status
	Index    uint64 // raft index that applied the block; 0 unless StatusApplied
	Next     uint64 // sequence to resend from; StatusGap only
	Outcomes []telemetry.Outcome
}

// originResultsMax is how many answers are kept per origin: several times what a
// node may have in flight to one shard (ingest.inFlightMax), so that a resend
// after a change of leader always finds its answer.
const originResultsMax = 64

// originsMax bounds how many origins are remembered. An origin is a running
// node process; the least recently active one is forgotten, and what it might
// still send is then unknown, which is never acknowledged.
const originsMax = 1024

// origin is the state machine's memory of one node that sends blocks: it makes
// blocks of one epoch apply in sequence and at most once.
type origin struct {
	epoch   uint64
	last    uint64   // sequence applied last
	used    uint64   // raft index of its last block, for forgetting
	results []Result // of sequences last-len+1 .. last
}

type origins map[string]*origin

// admit decides about a block before it is applied. Only (nil, true) lets it
// pass; otherwise the result is the whole answer.
func (o origins) admit(peer string, epoch, seq uint64) (Result, bool) {
	w := o[peer]
	switch {
	case w == nil || epoch > w.epoch:
		if seq != 1 {
			return Result{Status: StatusGap, Next: 1}, false
		}
		return Result{}, true
	case epoch < w.epoch:
		return Result{Status: StatusUnknown}, false
	case seq == w.last+1:
		return Result{}, true
	case seq > w.last+1:
		return Result{Status: StatusGap, Next: w.last + 1}, false
	}
	back := w.last - seq // 0 for the newest
	if back >= uint64(len(w.results)) {
		return Result{Status: StatusUnknown}, false
	}
	return w.results[uint64(len(w.results))-1-back], false
}

// record keeps the answer to an admitted block.
func (o origins) record(peer string, epoch, seq uint64, res Result) {
	w := o[peer]
	if w == nil {
		if len(o) >= originsMax {
			o.forgetOldest()
		}
		w = &origin{}
		o[peer] = w
	}
	if epoch > w.epoch {
		w.epoch, w.results = epoch, w.results[:0]
	}
	w.last, w.used = seq, res.Index
	if len(w.results) >= originResultsMax {
		w.results = slices.Delete(w.results, 0, 1)
	}
	w.results = append(w.results, res)
}

func (o origins) forgetOldest() {
	var oldest string
	for peer, w := range o {
		// Index order makes the choice independent of map order; two origins
		// never share the index of their last block.
		if oldest == "" || w.used < o[oldest].used {
			oldest = peer
		}
	}
	delete(o, oldest)
}

func (o origins) append(b []byte) []byte {
	peers := make([]string, 0, len(o))
	for p := range o {
		peers = append(peers, p)
	}
	slices.Sort(peers)
	b = wire.AppendUint(b, uint64(len(peers)))
	for _, p := range peers {
		w := o[p]
		b = wire.AppendString(b, p)
		b = wire.AppendUint(b, w.epoch)
		b = wire.AppendUint(b, w.last)
		b = wire.AppendUint(b, w.used)
		b = wire.AppendUint(b, uint64(len(w.results)))
		for i := range w.results {
			b = w.results[i].Append(b)
		}
	}
	return b
}

func (o origins) decode(r *wire.Reader) {
	for range r.Count(5) {
		peer := r.String()
		w := &origin{epoch: r.Uint(), last: r.Uint(), used: r.Uint()}
		for range r.Count(3) {
			w.results = append(w.results, DecodeResult(r))
		}
		o[peer] = w
	}
}

// Append encodes the result for a frame or a snapshot.
func (res *Result) Append(b []byte) []byte {
	b = append(b, byte(res.Status))
	b = wire.AppendUint(b, res.Index)
	b = wire.AppendUint(b, res.Next)
	b = wire.AppendUint(b, uint64(len(res.Outcomes)))
	for _, o := range res.Outcomes {
		b = append(b, byte(o))
	}
	return b
}

// DecodeResult reads what Append wrote; errors latch in r.
func DecodeResult(r *wire.Reader) Result {
	res := Result{Status: Status(r.Byte()), Index: r.Uint(), Next: r.Uint()}
	if n := r.Count(1); n > 0 {
		res.Outcomes = make([]telemetry.Outcome, n)
		for i, c := range r.Bytes(n) {
			res.Outcomes[i] = telemetry.Outcome(c)
		}
	}
	return res
}
