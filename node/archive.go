package node

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/backlog"
	"github.com/sluice-iot/sluice/store/archive"
	"github.com/sluice-iot/sluice/telemetry"
)

// S3 is the bucket as package archive wants it.
func (c *ArchiveConfig) S3() *archive.S3Config {
	return &archive.S3Config{Endpoint: c.Endpoint, Bucket: c.Bucket, Region: c.Region, AccessKey: c.AccessKey, SecretKey: c.SecretKey}
}

// Folder is the prefix behind which the clusters' folders are.
func (c *ArchiveConfig) Folder() string {
	prefix := strings.TrimPrefix(c.Prefix, "/")
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	return prefix
}

// openArchive gives what copies files until its context ends, nil when none is configured. It
// talks to nobody yet: a store that is away must not keep a node from starting.
func (n *node) openArchive() (run func(context.Context), err error) {
	c := &n.cfg.Archive
	if c.Endpoint == "" || n.stores.files == nil {
		return nil, nil
	}
	bucket, err := archive.NewS3(*c.S3())
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	prefix := c.Folder()
	under := func() string {
		id := n.identity.ClusterID()
		if id == "" {
			return "" // not initialised yet
		}
		return prefix + id + "/"
	}
	a, err := archive.New(n.logger, n.registry, archive.Config{Prefix: under, Leads: n.leads, Hold: n.stores.hold}, n.stores.files, bucket)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		a.Run(ctx)
		bucket.Close()
	}, nil
}

// openHold gives what keeps rows beyond their retention for an archive, nil where nothing does.
func openHold(logger *slog.Logger, reg prometheus.Registerer, cfg *Config) (*archive.Hold, error) {
	c := &cfg.Archive
	if c.Endpoint == "" || c.HoldMax == 0 || cfg.Store.Retention == 0 {
		return nil, nil
	}
	dir := cfg.Node.Data
	return archive.NewHold(logger, reg, archive.HoldConfig{
		Max: c.HoldMax, BytesMax: int64(c.HoldMaxMiB) << 20, Space: func() (free, size int64) { return backlog.Free(dir), backlog.Size(dir) },
	})
}

// holdTrouble is an alarm about rows of this node that wait for the archive, "" without.
func (n *node) holdTrouble() string {
	if n.stores.hold == nil {
		return ""
	}
	h := n.stores.hold.State()
	if !h.Late(time.Now()) {
		return ""
	}
	text := fmt.Sprintf("node %s: the archive lacks rows of %d shards, %.1f MiB, that store.retention has ended since %s; ", n.identity.Node(), h.Shards, float64(h.Bytes)/(1<<20), h.Since.UTC().Format(time.RFC3339))
	if h.Short {
		return text + "there is no room to keep them: the oldest go without a copy"
	}
	return text + fmt.Sprintf("they stay until it has them, from %s on they go without a copy", h.Until.UTC().Format(time.RFC3339))
}

// leads reports whether this node leads a shard, by its quorum's word.
func (n *node) leads(id telemetry.ShardID) bool {
	s, ok := n.host.Shard(id)
	return ok && s.Verify() == nil
}
