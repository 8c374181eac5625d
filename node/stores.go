package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/internal/obs"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/store/archive"
	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/store/postgres"
	"github.com/sluice-iot/sluice/telemetry"
)

// stores is where this node's rows go.
type stores struct {
	shard.Stores
	name     string         // as status shows it
	files    *parquet.Store // nil with a database
	database *postgres.DB   // nil with the embedded store
	hold     *archive.Hold  // nil when no rows wait for an archive
	close    func() error
	// failed gets the error after which nobody knows what the disk holds.
	failed chan error
}

func (s *stores) fail(err error) {
	select {
	case s.failed <- err:
	default: // the process is ending already
	}
}

// openStores opens the database if the configuration names one, and the embedded
// store otherwise. A database that cannot be reached is no error: intake goes
// on, the backlog shows.
func openStores(logger *slog.Logger, reg prometheus.Registerer, cfg Config, id *cluster.Identity, rotten func(telemetry.ShardID, parquet.Range, error)) (stores, error) {
	if cfg.Store.Database != "" {
		pc := databaseConfig(&cfg)
		pc.Cluster = id.ClusterID
		db, err := postgres.Open(logger, reg, pc)
		if err != nil {
			return stores{}, fmt.Errorf("store.database: %w", err)
		}
		return stores{Stores: shard.Stores{Shared: db}, name: "postgres", database: db, close: db.Close}, nil
	}
	hold, err := openHold(logger, reg, &cfg)
	if err != nil {
		return stores{}, err
	}
	var keeper parquet.Keeper
	if hold != nil {
		keeper = hold
	}
	files, err := parquet.Open(logger, reg, parquet.Config{
		Keeper: keeper,
		Dir:    filepath.Join(cfg.Node.Data, "store"), Retention: cfg.Store.Retention,
		CompactBytesPerSecond: cfg.Store.CompactMiBPerSecond << 20, ScrubBytesPerSecond: cfg.Store.ScrubMiBPerSecond << 20,
		ScrubEvery: cfg.Store.ScrubEvery, OnDamage: rotten,
	})
	if err != nil {
		return stores{}, err
	}
	failed := make(chan error, 1)
	return stores{Stores: shard.Stores{Local: segments{files, failed}}, name: "parquet", files: files, hold: hold, close: files.Close, failed: failed}, nil
}

// Migrate prepares the database of a configuration, as the owner of its tables.
func Migrate(ctx context.Context, logger *slog.Logger, cfg Config) error {
	cfg.Store.ManualMigrations = false
	return postgres.Migrate(ctx, logger, databaseConfig(&cfg))
}

// databaseConfig is what the configuration says about the database.
func databaseConfig(cfg *Config) postgres.Config {
	return postgres.Config{
		URL: cfg.Store.Database, Cluster: func() string { return "" }, Conns: cfg.Store.Connections, Chunk: cfg.Store.Chunk,
		Retention: cfg.Store.Retention, CompressAfter: cfg.Store.CompressAfter, AggregateRetention: cfg.Store.AggregateRetention,
		ManualMigrations: cfg.Store.ManualMigrations,
	}
}

// How many flushes a node runs at once. With a database it is how many shards
// may have gathered rows in memory; they share transactions, and connections
// bound those.
const (
	databaseFlushes = 16
	localFlushes    = 2 // more only compete for the disk
)

func (s *stores) flushesMax() int {
	if s.database != nil {
		return databaseFlushes
	}
	return localFlushes
}

// drop removes the rows of a shard that has moved away.
func (s *stores) drop(id telemetry.ShardID) error {
	if s.files == nil {
		return nil // they are everybody's
	}
	return s.files.Drop(id)
}

// alarm says what is wrong with the store, "" when nothing is known to be.
func (s *stores) alarm() string {
	if s.database == nil {
		return ""
	}
	if err := s.database.Health(); err != nil {
		return fmt.Sprintf("database: %s (intake goes on, rows wait in the log)", obs.OneLine(err.Error()))
	}
	return ""
}

// segments is the embedded store as a shard wants it.
type segments struct {
	*parquet.Store
	failed chan<- error
}

// Write implements shard.LocalStore.
func (s segments) Write(ctx context.Context, b *telemetry.Batch) ([16]byte, error) {
	seg, err := s.Store.Write(ctx, b)
	if errors.Is(err, parquet.ErrCorrupt) { // of the file that holds the range already: the next attempt writes it
		err = s.damaged(ctx, err)
	}
	if errors.Is(err, parquet.ErrSync) {
		select {
		case s.failed <- err:
		default: // the process is ending already
		}
	}
	return seg.Digest, err
}

// Digest implements shard.LocalStore.
func (s segments) Digest(id telemetry.ShardID, from, to uint64) ([16]byte, bool) {
	seg, ok, err := s.Find(context.Background(), id, from, to)
	return seg.Digest, ok && err == nil // Write says what is wrong
}

// Read implements shard.LocalStore. A damaged segment is taken out of the store
// and fetched from a peer; until then its rows are unavailable, not missing.
func (s segments) Read(ctx context.Context, id telemetry.ShardID, upTo uint64, q store.Query) ([]store.Point, uint64, error) {
	points, covered, err := s.Store.Read(ctx, id, upTo, q)
	return points, covered, s.damaged(ctx, err)
}

// Aggregate implements shard.LocalStore, like Read.
func (s segments) Aggregate(ctx context.Context, id telemetry.ShardID, upTo uint64, q store.Aggregate) ([]store.Bucket, uint64, error) {
	buckets, covered, err := s.Store.Aggregate(ctx, id, upTo, q)
	return buckets, covered, s.damaged(ctx, err)
}

// damaged sets the segment aside that an error is about.
func (s segments) damaged(ctx context.Context, err error) error {
	var damage *parquet.CorruptError
	if !errors.As(err, &damage) {
		return err
	}
	aside := s.SetAside(ctx, parquet.Segment{Shard: damage.Shard, From: damage.From, To: damage.To}, damage)
	if errors.Is(aside, parquet.ErrNotFound) {
		aside = nil // somebody else met it first
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, errors.Join(err, aside))
}

// maintain compacts and expires the files in the background until ctx ends.
func (s *stores) maintain(ctx context.Context) {
	if s.files == nil {
		return
	}
	s.files.Maintain(ctx, s.fail)
}
