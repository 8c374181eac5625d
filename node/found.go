package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/internal/obs"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/wal"
)

// What can rot.
const (
	kindLog      = "log"
	kindSnapshot = "snapshot"
	kindSegment  = "segment"
)

// damagesKept bounds what status shows of one node: a disk that is dying finds
// more every minute, and the first and the last few say it all.
const damagesKept = 32

// damages is what this process has found damaged. It outlives the lives of the
// node in it: a repaired node must not hide that its disk rots.
type damages struct {
	mu    sync.Mutex
	found []api.Damage // the latest
	count map[string]uint64
}

func newDamages() *damages { return &damages{count: map[string]uint64{}} }

// note remembers one damage.
func (d *damages) note(kind, what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count[kind]++
	d.found = append(d.found, api.Damage{Time: api.Time(clock.Micros(time.Now())), Kind: kind, What: obs.OneLine(what)})
	if over := len(d.found) - damagesKept; over > 0 {
		d.found = slices.Delete(d.found, 0, over)
	}
}

// list is what status shows.
func (d *damages) list() []api.Damage {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.found)
}

// register shows the counts in the metrics of one life.
func (d *damages) register(reg prometheus.Registerer) {
	for _, kind := range []string{kindLog, kindSnapshot, kindSegment} {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sluice_node_damages_total", Help: "What this process has found damaged on its disk, by kind: log, snapshot or segment.",
			ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 {
			d.mu.Lock()
			defer d.mu.Unlock()
			return float64(d.count[kind])
		}))
	}
}

// damageKind says what a damage that ends a life is of.
func damageKind(err error) string {
	if errors.As(err, new(*wal.CorruptError)) || errors.Is(err, errLogGone) {
		return kindLog
	}
	return kindSnapshot
}

// asides are the ranges of the embedded store whose files were set aside.
type asides struct {
	mu     sync.Mutex
	ranges map[telemetry.ShardID][]parquet.Range
}

func (a *asides) add(id telemetry.ShardID, r parquet.Range) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ranges == nil {
		a.ranges = map[telemetry.ShardID][]parquet.Range{}
	}
	a.ranges[id] = append(a.ranges[id], r)
}

// forget is for a shard that has left this node.
func (a *asides) forget(id telemetry.ShardID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.ranges, id)
}

// left lists how many files each shard still lacks, and forgets the others.
func (a *asides) left(missing func(id telemetry.ShardID, upTo uint64) []parquet.Range) map[telemetry.ShardID]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[telemetry.ShardID]int{}
	for id, ranges := range a.ranges {
		ranges = slices.DeleteFunc(ranges, func(r parquet.Range) bool {
			return !slices.ContainsFunc(missing(id, r.To), func(m parquet.Range) bool { return m.From < r.To && r.From < m.To })
		})
		if a.ranges[id] = ranges; len(ranges) == 0 {
			delete(a.ranges, id)
			continue
		}
		out[id] = len(ranges)
	}
	return out
}

// rottenSegment hears of a file of the embedded store that was set aside.
func (n *node) rottenSegment(id telemetry.ShardID, r parquet.Range, why error) {
	n.asides.add(id, r)
	n.sys.found.note(kindSegment, fmt.Sprintf("segment %v of shard %d: %v", r, id, why))
	if n.host != nil { // the store is opened before
		n.host.RowsRotted(id)
	}
}

// drop implements shard.Deps.Drop.
func (n *node) drop(id telemetry.ShardID) error {
	n.asides.forget(id)
	return n.stores.drop(id)
}

// segmentTroubles are alarms about rows that were damaged and are not fetched yet.
func (n *node) segmentTroubles() (out []string) {
	if n.stores.files == nil {
		return nil
	}
	left := n.asides.left(n.stores.files.Missing)
	ids := make([]telemetry.ShardID, 0, len(left))
	for id := range left {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		out = append(out, fmt.Sprintf("node %s: %d segments of shard %d are damaged; they are being fetched from its other replicas, and this one does not vote meanwhile", n.identity.Node(), left[id], id))
	}
	return out
}

// rottenRows reports whether rows of a shard here were damaged and are not back.
func (n *node) rottenRows(id telemetry.ShardID) bool {
	return n.stores.files != nil && n.asides.left(n.stores.files.Missing)[id] > 0
}

// scrub is how this node reads snapshots back: as it does its log.
func (c *WALConfig) scrub() shard.Scrub {
	s := shard.Scrub{Every: c.ScrubEvery, BytesPerSecond: int64(c.ScrubMiBPerSecond) << 20}
	if s.Every == 0 {
		s.Every = wal.DefaultScrubEvery
	}
	if s.BytesPerSecond == 0 {
		s.BytesPerSecond = wal.DefaultScrubPerSec
	}
	return s
}

// scrubMeta reads the meta group's snapshot back, and replaces a damaged one by
// one of the state in memory. It reports whether there is none left.
func (n *node) scrubMeta(ctx context.Context) bool {
	dir := filepath.Join(n.cfg.Node.Data, "meta")
	name, why := shard.SnapshotDamage(ctx, dir, n.cfg.WAL.scrub())
	if name == "" {
		if why != nil && ctx.Err() == nil && !errors.Is(why, fs.ErrNotExist) {
			n.logger.Warn("snapshot of the meta group not read back", "err", why)
		}
		if why == nil {
			n.rotten.Store(nil)
		}
		return true
	}
	err := fmt.Errorf("snapshot %s of the meta group is damaged: %w", name, why)
	if known := n.rotten.Load(); known == nil || *known != name {
		n.rotten.Store(&name)
		n.sys.found.note(kindSnapshot, err.Error())
		n.logger.Error("snapshot is damaged: another one is taken of the state in memory", "err", err)
	}
	if err := n.meta.Snapshot(ctx); err != nil {
		n.logger.Error("damaged snapshot not replaced, trying again", "snapshot", name, "err", err)
		return false
	}
	if again, err := shard.SnapshotDamage(ctx, dir, shard.Scrub{}); again != "" || err != nil {
		n.logger.Error("damaged snapshot not replaced, trying again", "snapshot", again, "err", err)
		return false
	}
	n.rotten.Store(nil)
	n.logger.Info("damaged snapshot replaced by one of the state in memory", "snapshot", name)
	return true
}
