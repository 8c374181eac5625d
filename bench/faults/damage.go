package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/wal"
)

// Damage to the log of a stopped node. A node must never serve with a log that
// has lost entries: it says what is wrong, and either repairs it from its peers
// or stays off until somebody brings the bytes back.

// harm is one kind of damage to the bytes of a segment; at is in its used part.
type harm func(b []byte, at int) []byte

func flipBit(b []byte, at int) []byte {
	b[at] ^= 1 << (at % 8)
	return b
}

func truncateFile(b []byte, at int) []byte { return b[:at] }

const pageBytes = 4096

func zeroPage(b []byte, at int) []byte {
	from := at / pageBytes * pageBytes
	clear(b[from:min(from+pageBytes, len(b))])
	return b
}

// damageWithin is how long a node with a damaged log may take to say so.
const damageWithin = 30 * time.Second

func damage(h harm) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		victim := r.rng.IntN(nodesCount)
		n := r.Cluster.Nodes()[victim]
		if err := r.kill(victim); err != nil {
			return err
		}
		path, whole, err := spoil(n.Data, h, r.rng)
		if err != nil {
			return err
		}
		r.strikes()
		if err := n.Start(); err != nil {
			return err
		}
		if err := r.ended(ctx, victim, damageWithin); err != nil {
			return r.repaired(ctx, victim, err)
		}
		said, err := r.logOf(victim)
		if err != nil {
			return err
		}
		if !strings.Contains(said, "damage") && !strings.Contains(said, "corrupt") {
			return fmt.Errorf("%s has ended over a damaged log without a word about damage", n.ID)
		}
		r.note = "refused to start, started with the bytes back"
		sleep(ctx, away)
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			return fmt.Errorf("bring the bytes back: %w", err)
		}
		return n.Start()
	}
}

// repaired is for a node that runs in spite of its damage: it must have noticed.
func (r *Run) repaired(ctx context.Context, node int, still error) error {
	said, err := r.logOf(node)
	if err != nil {
		return err
	}
	if !strings.Contains(said, "damage") && !strings.Contains(said, "corrupt") {
		return fmt.Errorf("%w and has not noticed its damage", still)
	}
	r.note = "noticed, repaired from peers"
	return r.Cluster.Nodes()[node].WaitReady(ctx)
}

// spoil damages the fullest segment in the older half of what is used, where
// later group commits prove that it was synced. It returns the bytes of before.
func spoil(data string, h harm, rng *rand.Rand) (path string, whole []byte, err error) {
	st, err := wal.Stat(data)
	if err != nil {
		return "", nil, fmt.Errorf("choose a segment to damage: %w", err)
	}
	var best wal.SegmentStats
	for _, s := range st.Segments {
		if s.Used > best.Used {
			best = s
		}
	}
	const header = pageBytes
	if best.Used < 4*header {
		return "", nil, errors.New("the log is too small to be damaged")
	}
	path = filepath.Join(data, "wal", best.Name)
	if whole, err = os.ReadFile(path); err != nil {
		return "", nil, fmt.Errorf("damage a segment: %w", err)
	}
	at := header + rng.IntN(int(best.Used/2)-header)
	b := h(append([]byte(nil), whole...), at)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return "", nil, fmt.Errorf("damage a segment: %w", err)
	}
	return path, whole, nil
}

// logOf is what a node has said since its last start.
func (r *Run) logOf(node int) (string, error) {
	n := r.Cluster.Nodes()[node]
	b, err := os.ReadFile(filepath.Join(r.dir, n.ID+".log"))
	if err != nil {
		return "", fmt.Errorf("read what %s said: %w", n.ID, err)
	}
	// A start begins with the line that tells of the waiting for the cluster or
	// ends before it: the last lines are those of this start either way.
	const tailBytes = 16 << 10
	return string(b[max(0, len(b)-tailBytes):]), nil
}
