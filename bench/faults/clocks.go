package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/internal/clock"
)

// Wall clocks that are wrong, each node's by another amount, and jump; monotonic
// time goes on. A container has the clock of its machine, so the nodes are builds
// whose clock follows a file, see package clock.

// ErrNoClocks says that there is no binary whose clock can be moved.
var ErrNoClocks = errors.New("clocks cannot be moved: name a binary built with -tags mutations")

const (
	clockMost  = 10 * time.Minute
	clockJumps = 10
	// clockSlack is how far a time of receipt may be from the clock that gave it.
	clockSlack = time.Minute
	// clockStill is how long ago the last time of receipt has to be on a node whose
	// clock was set back: it gives none twice, so they stand still for a while.
	clockStill = 3 * time.Second
	clockKnown = 30 * time.Second // until a process has looked at its file
)

// clockFile comes before the command of node i.
func (r *Run) clockFile(i int) []string { return []string{"env", clock.Env + "=" + r.clockPath(i)} }

func (r *Run) clockPath(i int) string { return filepath.Join(r.dir, "clock-"+strconv.Itoa(i)) }

// setClock makes a node's clock wrong.
func (r *Run) setClock(i int, off time.Duration) error {
	path := r.clockPath(i)
	if err := os.WriteFile(path+".tmp", []byte(strconv.FormatInt(off.Milliseconds(), 10)), 0o600); err != nil {
		return fmt.Errorf("move the clock of node %d: %w", i, err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("move the clock of node %d: %w", i, err)
	}
	return nil
}

func wrongClocks(ctx context.Context, r *Run) error {
	r.strikes()
	for i, off := range []time.Duration{clockMost, -clockMost, 0} {
		if err := r.setClock(i, off); err != nil {
			return err
		}
		if err := r.clockIs(ctx, i, off); err != nil {
			return err
		}
	}
	sleep(ctx, away)
	for k := range clockJumps {
		off := time.Duration(r.rng.Int64N(int64(2*clockMost))) - clockMost
		if err := r.setClock(r.rng.IntN(nodesCount), off); err != nil {
			return err
		}
		if k == clockJumps/2 { // leaders change while clocks disagree
			most, err := r.busiest(ctx)
			if err == nil {
				err = r.kill(most)
			}
			if err == nil {
				err = r.startNodes(most)
			}
			if err != nil {
				return err
			}
		}
		sleep(ctx, r.upTo(time.Second))
	}
	sleep(ctx, away)
	for i := range nodesCount {
		if err := r.setClock(i, 0); err != nil {
			return err
		}
	}
	r.note = fmt.Sprintf("%d jumps", clockJumps+2)
	return nil
}

// clockIs waits until messages that a node receives are stamped by its wrong
// clock: without that the fault would prove nothing.
func (r *Run) clockIs(ctx context.Context, i int, off time.Duration) error {
	n := r.Cluster.Nodes()[i]
	cl, err := n.Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	device := "clock-" + strconv.Itoa(i)
	seen := time.Duration(0)
	for end := time.Now().Add(clockKnown); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 100*time.Millisecond) {
		if _, err = cl.Publish(ctx, fmt.Appendf(nil, `{"device_id":%q,"sensors":{"x":1}}`, device), ""); err != nil {
			continue
		}
		for rd, rerr := range cl.Readings(ctx, client.ReadingsQuery{Device: device}) {
			if err = rerr; err != nil {
				break
			}
			seen = time.Until(time.UnixMicro(int64(rd.Time)))
			if d := seen - off; d < clockSlack && d > -clockSlack || off < 0 && seen < -clockStill {
				return nil
			}
		}
	}
	return fmt.Errorf("the clock of %s is off by %v, not by %v: %w", n.ID, seen.Round(time.Second), off, err)
}
