package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

// ElectionsConfig of the scenario of a busy machine.
type ElectionsConfig struct {
	Binary   string // the sluice executable
	Dir      string // for the cluster's data; "" is a temporary directory
	Duration time.Duration
	Spinners int // goroutines that never wait; 0 is two per core
	Shards   uint32
	Progress io.Writer // what is being done, may be nil
}

// Elections is what a busy machine did to the leaderships.
type Elections struct {
	Duration time.Duration `json:"duration_ns"`
	Cores    int           `json:"cores"`
	Spinners int           `json:"spinners"`
	Shards   uint32        `json:"shards"`
	// Count is how many terms have begun: each is an election that was won or
	// tried.
	Count int   `json:"elections"`
	Acked int   `json:"acknowledged"`
	Gap   int64 `json:"longest_gap_ms"` // between two acknowledgements of a client
}

// RunElections keeps every core busy with work that never waits, beside a
// cluster of three under a steady light load, and counts elections: there is no
// reason for any.
func RunElections(ctx context.Context, cfg ElectionsConfig) (out *Elections, err error) {
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	if cfg.Spinners == 0 {
		cfg.Spinners = 2 * runtime.NumCPU()
	}
	c, stop, err := scratchCluster(ctx, cfg.Binary, cfg.Dir, cfg.Shards)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	before, err := terms(ctx, c)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(cfg.Progress, "keeping %d cores busy for %v\n", runtime.NumCPU(), cfg.Duration)
	busy, cancel := context.WithTimeout(ctx, cfg.Duration)
	defer cancel()
	clients := watchers(c, cfg.Shards)
	var done sync.WaitGroup
	for _, w := range clients {
		done.Go(func() { w.Run(busy, 5*time.Second) })
	}
	for range cfg.Spinners {
		done.Go(func() { spin(busy) })
	}
	done.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	after, err := terms(ctx, c)
	if err != nil {
		return nil, err
	}
	out = &Elections{Duration: cfg.Duration, Cores: runtime.NumCPU(), Spinners: cfg.Spinners, Shards: cfg.Shards, Count: int(after - before)}
	for _, w := range clients {
		out.Acked += w.Acked()
		out.Gap = max(out.Gap, w.LongestGap().Milliseconds())
	}
	return out, nil
}

func spin(ctx context.Context) {
	for n := 0; ; n++ {
		if n%(1<<20) == 0 && ctx.Err() != nil {
			return
		}
	}
}

// terms adds up the latest term of every shard.
func terms(ctx context.Context, c *devcluster.Cluster) (sum uint64, err error) {
	latest := map[uint64]uint64{}
	for _, n := range c.Nodes() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Debug+"/debug/replicas", nil)
		if err != nil {
			return 0, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, fmt.Errorf("ask %s for its terms: %w", n.ID, err)
		}
		var replicas []struct{ Shard, Term uint64 }
		err = json.NewDecoder(res.Body).Decode(&replicas)
		_ = res.Body.Close() // read to the end of what matters
		if err != nil {
			return 0, fmt.Errorf("read the terms of %s: %w", n.ID, err)
		}
		for _, r := range replicas {
			latest[r.Shard] = max(latest[r.Shard], r.Term)
		}
	}
	for _, t := range latest {
		sum += t
	}
	return sum, nil
}

// Table writes the result for people.
func (e *Elections) Table(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%d elections of %d shards in %v with %d spinning goroutines on %d cores; %d publishes acknowledged, longest gap of a client %d ms\n",
		e.Count, e.Shards, e.Duration, e.Spinners, e.Cores, e.Acked, e.Gap)
	return err
}
