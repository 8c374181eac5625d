package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
)

// Bucket is what the archive needs of an object store. Its methods may be called
// from any goroutine and may block until ctx ends.
type Bucket interface {
	// List gives the keys below a prefix, in any order.
	List(ctx context.Context, prefix string) ([]string, error)
	// Put makes an object of size bytes durable, whole or not at all.
	Put(ctx context.Context, key string, body io.Reader, size int64) error
}

// Files is the store that is copied.
type Files interface {
	Shards() []telemetry.ShardID
	// Settled is the log index up to which a shard's windows of receipt are over,
	// without gaps.
	Settled(shard telemetry.ShardID, now time.Time) uint64
	// Overdue lists the files that are there although their retention is over.
	Overdue(now time.Time) []parquet.Overdue
	// Export gives a range in pieces that do not overlap; one without a reader has
	// expired.
	Export(ctx context.Context, shard telemetry.ShardID, want parquet.Range, send func(parquet.Segment, io.Reader) error) error
}

// Config of an Archiver.
type Config struct {
	Prefix func() string // of all keys, such as "sluice/CLUSTER/"; "" while that is not known
	Every  time.Duration // pause between rounds, default 5 min
	// Leads reports whether this node leads a shard right now, by its quorum's word.
	Leads func(shard telemetry.ShardID) bool
	// Hold is told what the archive has; nil: nothing waits for it.
	Hold *Hold
}

const everyDefault = 5 * time.Minute

// Archiver copies what its node leads.
type Archiver struct {
	log     *slog.Logger
	metrics *metrics
	cfg     Config
	files   Files
	bucket  Bucket
	gone    map[telemetry.ShardID]uint64 // end of what was told to have expired unarchived
}

// New returns an Archiver; reg may be nil.
func New(logger *slog.Logger, reg prometheus.Registerer, cfg Config, files Files, bucket Bucket) (*Archiver, error) {
	if cfg.Leads == nil || cfg.Prefix == nil {
		return nil, errors.New("archive: nobody tells which shards are led here, or where files go")
	}
	if cfg.Every == 0 {
		cfg.Every = everyDefault
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	return &Archiver{log: logger, metrics: m, cfg: cfg, files: files, bucket: bucket, gone: map[telemetry.ShardID]uint64{}}, nil
}

// stepEvery is how often it is looked at what is held back, and at the disk.
const stepEvery = 10 * time.Second

// Run copies until ctx ends.
func (a *Archiver) Run(ctx context.Context) {
	var holding sync.WaitGroup
	defer holding.Wait()
	if a.cfg.Hold != nil {
		holding.Go(func() { // a round may wait for the network for long
			tick := time.NewTicker(stepEvery)
			defer tick.Stop()
			for {
				now := time.Now()
				a.cfg.Hold.Step(now, a.files.Overdue(now))
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		})
	}
	for {
		if err := a.Round(ctx, time.Now()); err != nil && ctx.Err() == nil {
			a.metrics.failures.Inc()
			a.log.Warn("archive: the files stay here, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.cfg.Every):
		}
	}
}

// Round copies what the archive lacks of the shards that this node leads.
func (a *Archiver) Round(ctx context.Context, now time.Time) error {
	prefix := a.cfg.Prefix()
	if prefix == "" {
		return nil
	}
	var errs []error
	for _, shard := range a.files.Shards() {
		if ctx.Err() != nil {
			break
		}
		switch {
		case a.cfg.Leads(shard):
			errs = append(errs, a.shard(ctx, prefix, shard, now))
		case a.cfg.Hold.wants(shard):
			_, err := a.list(ctx, folder(prefix, shard), shard)
			errs = append(errs, err)
		}
	}
	err := errors.Join(errs...)
	if err == nil && ctx.Err() == nil {
		a.metrics.complete.Set(float64(now.Unix()))
	}
	return err
}

// errDeposed ends a round: another node copies the shard from now on.
var errDeposed = errors.New("this node does not lead the shard any more")

func (a *Archiver) shard(ctx context.Context, prefix string, shard telemetry.ShardID, now time.Time) error {
	upTo := a.files.Settled(shard, now)
	if upTo == 0 {
		return nil
	}
	prefix = folder(prefix, shard)
	have, err := a.list(ctx, prefix, shard)
	if err != nil {
		return err
	}
	for _, gap := range parquet.Gaps(have, upTo) {
		err := a.files.Export(ctx, shard, gap, func(seg parquet.Segment, body io.Reader) error {
			err := a.put(ctx, prefix, seg, body)
			if err == nil && body != nil {
				have = append(have, seg.Range())
			}
			return err
		})
		a.cfg.Hold.learn(shard, have)
		if errors.Is(err, errDeposed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("archive range %v of shard %d: %w", gap, shard, err)
		}
	}
	return nil
}

func folder(prefix string, shard telemetry.ShardID) string {
	return prefix + parquet.FolderName(shard) + "/"
}

// list gives the ranges of a shard that the archive has.
func (a *Archiver) list(ctx context.Context, prefix string, shard telemetry.ShardID) ([]parquet.Range, error) {
	keys, err := a.bucket.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	var have []parquet.Range
	for _, k := range keys {
		if r, ok := parquet.ParseName(strings.TrimPrefix(k, prefix)); ok {
			have = append(have, r)
		}
	}
	a.cfg.Hold.learn(shard, have)
	return have, nil
}

// expired tells once of a range whose rows have expired before they were copied.
func (a *Archiver) expired(seg *parquet.Segment) {
	if seg.To <= a.gone[seg.Shard] {
		return
	}
	a.gone[seg.Shard] = seg.To
	a.metrics.expired.Inc()
	a.log.Error("archive: rows have expired before they were copied and are not in it", "shard", seg.Shard, "from", seg.From, "to", seg.To,
		"received", time.UnixMicro(seg.MaxReceived).UTC())
}

func (a *Archiver) put(ctx context.Context, prefix string, seg parquet.Segment, body io.Reader) error {
	if body == nil {
		a.expired(&seg)
		return nil
	}
	if !a.cfg.Leads(seg.Shard) {
		return errDeposed
	}
	key := prefix + parquet.Name(seg.Range())
	if err := a.bucket.Put(ctx, key, body, seg.Bytes); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	a.metrics.objects.Inc()
	a.metrics.bytes.Add(float64(seg.Bytes))
	a.log.Debug("segment archived", "shard", seg.Shard, "path", key, "bytes", seg.Bytes)
	return nil
}
