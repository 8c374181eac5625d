package faults

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sluice-iot/sluice/bench"
)

// History is all that the checks C1 to C4 need. It is kept of a run that fails,
// so that it can be judged again.
type History struct {
	Version int
	Fault   string
	Seed    uint64
	Clients []bench.History
	Stored  map[string]map[string][]bench.Stored // through a node, or in the database; by device
	Logs    []Log
	// Registers is every operation on the registers.
	Registers []Operation
	// Commands is what was sent to every device, and what it was given.
	Commands []Commands
}

// historyVersion is the version of the file format: gzipped JSON of a History.
const historyVersion = 2

const historyFile = "history.json.gz"

// judge checks C1 to C3 in every place that was read, C4 in the logs and C6 in
// the operations on registers, and C11 at the devices. The
// table gets the counts of the worst place.
func (h *History) judge(res *Result) {
	for place, stored := range h.Stored {
		var v bench.Verdict
		for i := range h.Clients {
			v.Add(h.Clients[i].Judge(stored[h.Clients[i].Device]))
		}
		for _, err := range v.Errors {
			res.fail("C1-C3", "via %s: %v", place, err)
		}
		if wrong(&v) >= wrong(&res.Verdict) {
			res.Verdict = v
		}
	}
	for i := range h.Clients {
		if len(h.Clients[i].Acked) == 0 {
			res.fail("C7", "%s: nothing was acknowledged", h.Clients[i].Device)
		}
	}
	h.order(res)
	linearizable(h.Registers, res)
	for i := range h.Commands {
		h.Commands[i].judge(res)
	}
}

func wrong(v *bench.Verdict) int { return v.Lost + v.Twice + v.Unsent }

// order checks that first occurrences of a device's messages ascend in every
// log, and that logs agree on every committed entry (C4).
func (h *History) order(res *Result) {
	for _, l := range h.Logs {
		for id := range l.Shards {
			for device, seqs := range l.Shards[id].Devices {
				if before, seq, ok := unordered(seqs); ok {
					res.fail("C4", "log of %s, shard %d: message %d of %s came first behind message %d", l.Node, id, seq, device, before)
				}
			}
		}
	}
	for i := range h.Logs {
		for k := range i {
			h.agree(res, &h.Logs[k], &h.Logs[i])
		}
	}
}

// unordered finds a message that was first written behind a later one.
func unordered(seqs []uint64) (before, seq uint64, found bool) {
	seen := map[uint64]bool{}
	top, any := uint64(0), false
	for _, s := range seqs {
		if seen[s] {
			continue
		}
		seen[s] = true
		if any && s < top {
			return top, s, true
		}
		top, any = max(top, s), true
	}
	return 0, 0, false
}

func (h *History) agree(res *Result, a, b *Log) {
	for id := range a.Shards {
		x, y := &a.Shards[id], &b.Shards[id]
		for i := max(x.First, y.First); i <= min(x.Commit, y.Commit); i++ {
			hx, okx := x.hash(i)
			hy, oky := y.hash(i)
			if okx && oky && hx != hy {
				res.fail("C4", "shard %d: entry %d is committed on %s and %s with different content", id, i, a.Node, b.Node)
				break
			}
		}
	}
}

func (s *ShardLog) hash(i uint64) (uint64, bool) {
	if i < s.First || i-s.First >= uint64(len(s.Hashes)) {
		return 0, false
	}
	return s.Hashes[i-s.First], true
}

// keep writes the history of a failed run beside its cluster, and removes the
// directory of one that passed.
func (r *Run) keep(res *Result) error {
	if res.Passed() && !r.cfg.Keep {
		r.discard = true
		return nil
	}
	res.History = r.dir
	return res.kept.write(r.dir)
}

func (h *History) write(dir string) (err error) {
	h.Version = historyVersion
	f, err := os.Create(filepath.Join(dir, historyFile))
	if err != nil {
		return fmt.Errorf("keep history: %w", err)
	}
	z := gzip.NewWriter(f)
	err = json.NewEncoder(z).Encode(h)
	if err = errors.Join(err, z.Close(), f.Close()); err != nil {
		return fmt.Errorf("keep history: %w", err)
	}
	return nil
}

// Judge judges a kept history again, without a cluster.
func Judge(dir string) (Result, error) {
	f, err := os.Open(filepath.Join(dir, historyFile))
	if err != nil {
		return Result{}, fmt.Errorf("read history: %w: name the folder that a failed run has printed", err)
	}
	defer func() { _ = f.Close() }() // read only
	z, err := gzip.NewReader(f)
	if err != nil {
		return Result{}, fmt.Errorf("read history: %w", err)
	}
	var h History
	if err := json.NewDecoder(z).Decode(&h); err != nil {
		return Result{}, fmt.Errorf("read history: %w", err)
	}
	if h.Version != historyVersion {
		return Result{}, fmt.Errorf("history has version %d, this program judges version %d", h.Version, historyVersion)
	}
	res := Result{ID: h.Fault, Title: "judged again", Seed: h.Seed, History: dir}
	h.judge(&res)
	return res, nil
}
