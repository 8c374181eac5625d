package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/devcluster"
	"github.com/sluice-iot/sluice/wal"
)

// Damage to the log of a stopped node. A node must never serve with a log that
// has lost entries: it says what is wrong, sets it aside and is rebuilt from its
// peers.

// harm is one kind of damage to the bytes of a segment; at is in its used part.
type harm func(b []byte, at int) []byte

// flipBit never hits the padding of a record, which nobody reads: it ends where
// records may start.
func flipBit(b []byte, at int) []byte {
	b[at&^7] ^= 1 << (at % 8)
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
const damageWithin = 2 * time.Minute

func damage(h harm) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		victim := r.rng.IntN(nodesCount)
		n := r.Cluster.Nodes()[victim]
		if err := r.kill(victim); err != nil {
			return err
		}
		if err := spoil(n.Data, h, r.rng); err != nil {
			return err
		}
		if _, err := r.startDamaged(ctx, victim); err != nil {
			return err
		}
		return r.rebuilt(ctx)
	}
}

// startDamaged starts a node whose disk was spoiled, waits until it has said so, and
// returns how much it had said before.
func (r *Run) startDamaged(ctx context.Context, victim int) (before int, err error) {
	said, err := r.said(victim, 0)
	if err != nil {
		return 0, err
	}
	r.strikes()
	if err := r.Cluster.Nodes()[victim].Start(); err != nil {
		return 0, err
	}
	return len(said), r.notices(ctx, victim, len(said))
}

// notices waits until a node has said that it is damaged.
func (r *Run) notices(ctx context.Context, node, from int) error {
	n := r.Cluster.Nodes()[node]
	for end := time.Now().Add(damageWithin); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 50*time.Millisecond) {
		text, err := r.said(node, from)
		if err != nil {
			return err
		}
		if strings.Contains(text, "damage") || strings.Contains(text, "corrupt") {
			return nil
		}
		if !n.Running() {
			return fmt.Errorf("%s has ended over a damaged log without a word about damage", n.ID)
		}
	}
	return fmt.Errorf("%s runs on after %v and has not noticed its damage", n.ID, damageWithin)
}

// said is what a node has logged from a byte on.
func (r *Run) said(node, from int) (string, error) {
	n := r.Cluster.Nodes()[node]
	b, err := os.ReadFile(filepath.Join(r.dir, n.ID+".log"))
	if err != nil {
		return "", fmt.Errorf("read what %s said: %w", n.ID, err)
	}
	return string(b[min(from, len(b)):]), nil
}

// rebuiltMax bounds the repair of a node on a busy machine.
const rebuiltMax = 4 * time.Minute

// rebuilt waits until every shard has three voters again.
func (r *Run) rebuilt(ctx context.Context) error {
	began, why := time.Now(), "no node answers"
	for time.Since(began) < rebuiltMax && ctx.Err() == nil {
		if why = r.incomplete(ctx); why == "" {
			r.note = fmt.Sprintf("rebuilt from its peers after %v", time.Since(began).Round(100*time.Millisecond))
			return nil
		}
		sleep(ctx, 200*time.Millisecond)
	}
	return fmt.Errorf("not rebuilt after %v: %s", rebuiltMax, why)
}

// incomplete says which shard lacks a voter, "" if none does.
func (r *Run) incomplete(ctx context.Context) string {
	st, err := r.status(ctx)
	if err != nil {
		return err.Error()
	}
	for _, s := range st.Shards {
		voters := 0
		for _, p := range s.Replicas {
			if p.Role != api.RoleNonvoter {
				voters++
			}
		}
		if voters != nodesCount || len(s.Replicas) != nodesCount {
			return fmt.Sprintf("shard %d has %d voters among %d replicas", s.ID, voters, len(s.Replicas))
		}
	}
	for _, n := range r.nodes() {
		if !n.Running() {
			return n.ID + " does not run"
		}
	}
	if len(st.Shards) == 0 {
		return "no shard is known"
	}
	return r.unready(ctx)
}

// unready says which node does not take publishes, "" if all do.
func (r *Run) unready(ctx context.Context) string {
	for _, n := range r.nodes() {
		cl, err := n.Client()
		if err != nil {
			return err.Error()
		}
		err = cl.Ready(ctx)
		cl.Close()
		if err != nil {
			return n.ID + ": " + err.Error()
		}
	}
	return ""
}

// wipe deletes the data directory of a node, as a replaced disk has none.
func wipe(ctx context.Context, r *Run) error {
	victim := r.rng.IntN(nodesCount)
	n := r.Cluster.Nodes()[victim]
	r.strikes()
	if err := r.kill(victim); err != nil {
		return err
	}
	if err := os.RemoveAll(n.Data); err != nil {
		return fmt.Errorf("delete data directory: %w", err)
	}
	sleep(ctx, r.upTo(away))
	if err := n.Start(); err != nil {
		return err
	}
	return r.rebuilt(ctx)
}

// spoil damages the fullest segment in the older half of what is used, where
// later group commits prove that it was synced.
func spoil(data string, h harm, rng *rand.Rand) error {
	st, err := wal.Stat(data)
	if err != nil {
		return fmt.Errorf("choose a segment to damage: %w", err)
	}
	var best wal.SegmentStats
	for _, s := range st.Segments {
		if s.Used > best.Used {
			best = s
		}
	}
	const header = pageBytes
	if best.Used < 4*header {
		return errors.New("the log is too small to be damaged")
	}
	path := filepath.Join(data, "wal", best.Name)
	whole, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("damage a segment: %w", err)
	}
	at := header + rng.IntN(int(best.Used/2)-header)
	if err := os.WriteFile(path, h(whole, at), 0o600); err != nil {
		return fmt.Errorf("damage a segment: %w", err)
	}
	return nil
}

// damageSnapshot spoils every snapshot that a stopped node has of one shard. It
// must say so, and must not lead the shard before it is rebuilt.
func damageSnapshot(h harm) func(context.Context, *Run) error {
	return func(ctx context.Context, r *Run) error {
		victim := r.rng.IntN(nodesCount)
		n := r.Cluster.Nodes()[victim]
		dir, err := r.snapshots(ctx, n)
		if err != nil {
			return err
		}
		if err := r.kill(victim); err != nil {
			return err
		}
		if err := spoilSnapshots(dir, h, r.rng); err != nil {
			return err
		}
		before, err := r.startDamaged(ctx, victim)
		if err != nil {
			return err
		}
		if err := r.rebuilt(ctx); err != nil {
			return err
		}
		after, err := r.said(victim, before)
		if err != nil {
			return err
		}
		return ledWhileDamaged(after, filepath.Base(dir))
	}
}

// ledWhileDamaged reads from a node's log whether it led the damaged shard before
// it had set the damage aside.
func ledWhileDamaged(text, shard string) error {
	id := "shard=" + strings.TrimLeft(shard[:len(shard)-1], "0") + shard[len(shard)-1:]
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case !slices.Contains(fields, id):
		case strings.Contains(line, "damaged replica set aside"):
			return nil
		case strings.Contains(line, "leading shard"):
			return fmt.Errorf("it led the shard of the damaged snapshot: %s", line)
		}
	}
	return fmt.Errorf("nothing says that the damaged replica of %s was set aside", id)
}

// snapshotsWithin is how long the load may take to make a shard worth two snapshots.
const snapshotsWithin = 4 * time.Minute

// snapshots waits until a node has a snapshot of a shard that its log does not
// reach behind, and names the shard's directory: raft cuts the log behind a snapshot
// before it begins the next one.
func (r *Run) snapshots(ctx context.Context, n *devcluster.Node) (string, error) {
	first := map[string]int{} // index of the first one that was seen, by the shard's directory
	for end := time.Now().Add(snapshotsWithin); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
		found, err := filepath.Glob(filepath.Join(n.Data, "shards", "*", "snapshots", "*", "meta.sum"))
		if err != nil {
			return "", fmt.Errorf("look for snapshots: %w", err)
		}
		for _, path := range found {
			snap := filepath.Dir(path)
			dir, f := filepath.Dir(filepath.Dir(snap)), strings.Split(filepath.Base(snap), "-")
			if len(f) != 3 {
				continue
			}
			index, err := strconv.Atoi(f[1])
			if err != nil || index <= snapshotIndexMin {
				continue
			}
			if first[dir] == 0 {
				first[dir] = index
			}
			if index > first[dir] {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("%s has no two snapshots of one shard after %v", n.ID, snapshotsWithin)
}

// snapshotIndexMin is more entries than stay behind a snapshot.
const snapshotIndexMin = 100

func spoilSnapshots(dir string, h harm, rng *rand.Rand) error {
	files, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err == nil && len(files) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return fmt.Errorf("damage the snapshots in %s: %w", dir, err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("damage a snapshot: %w", err)
		}
		if err := os.WriteFile(path, h(b, rng.IntN(len(b))), 0o600); err != nil {
			return fmt.Errorf("damage a snapshot: %w", err)
		}
	}
	return nil
}
