package node

import (
	"context"
	"fmt"
	"strings"

	"github.com/sluice-iot/sluice/store/archive"
	"github.com/sluice-iot/sluice/telemetry"
)

func (c *ArchiveConfig) s3() *archive.S3Config {
	return &archive.S3Config{Endpoint: c.Endpoint, Bucket: c.Bucket, Region: c.Region, AccessKey: c.AccessKey, SecretKey: c.SecretKey}
}

// openArchive gives what copies files until its context ends, nil when none is configured. It
// talks to nobody yet: a store that is away must not keep a node from starting.
func (n *node) openArchive() (run func(context.Context), err error) {
	c := &n.cfg.Archive
	if c.Endpoint == "" || n.stores.files == nil {
		return nil, nil
	}
	bucket, err := archive.NewS3(*c.s3())
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	prefix := strings.TrimPrefix(c.Prefix, "/")
	if prefix != "" && !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	under := func() string {
		id := n.identity.ClusterID()
		if id == "" {
			return "" // not initialised yet
		}
		return prefix + id + "/"
	}
	a, err := archive.New(n.logger, n.registry, archive.Config{Prefix: under, Leads: n.leads}, n.stores.files, bucket)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		a.Run(ctx)
		bucket.Close()
	}, nil
}

// leads reports whether this node leads a shard, by its quorum's word.
func (n *node) leads(id telemetry.ShardID) bool {
	s, ok := n.host.Shard(id)
	return ok && s.Verify() == nil
}
