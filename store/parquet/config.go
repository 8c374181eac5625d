package parquet

import (
	"errors"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// Config of a Store. The zero value of every field but Dir is its default.
type Config struct {
	// Dir holds the shards' folders. It is created when absent (its parent must
	// exist) and must belong to this store alone.
	Dir string

	// Namespace of every batch; default 0. A store of another namespace needs a
	// directory of its own. Batches of other namespaces are refused.
	Namespace uint32

	// OpenFilesMax bounds the files kept open for reading; default 256. A lower
	// figure saves descriptors and about 30 KiB of memory each, a higher one
	// saves queries over many files from parsing footers again.
	OpenFilesMax int

	// Retention is how long rows are kept after they were received; default 0: for
	// ever. Rows go with the window (a day, with less than ten days an hour) that
	// they were received in, so that they stay up to a window longer. It must be
	// the same on every replica.
	Retention time.Duration

	// CompactBytesPerSecond bounds what compaction reads and writes; default 32 MiB.
	// A lower figure leaves more of the disk to flushes and queries, and more files
	// for queries to look into.
	CompactBytesPerSecond int

	// ScrubBytesPerSecond bounds what the search for damage in cold files reads;
	// default 1 MiB, which is 86 GB a day.
	ScrubBytesPerSecond int

	// ScrubEvery is how long a file that was found whole is left alone; default 30
	// days. Less finds damage sooner and reads more.
	ScrubEvery time.Duration

	// Keeper, if set, may keep files for longer than Retention.
	Keeper Keeper

	// OnDamage, if set, is told of every file that is set aside, with the range of
	// its shard that is missing from then on. It must not call the store.
	OnDamage func(shard telemetry.ShardID, r Range, why error)
}

// Keeper keeps files beyond the retention, for an archive that lacks them. Its
// methods are called one shard at a time or several, and must not call the store.
type Keeper interface {
	// Keep is asked for a file with rows whose retention was over at due, the oldest
	// of its shard first: true lets it stay, and everything behind it in the log.
	Keep(seg *Segment, due, now time.Time) bool
	// Expired is told what retention has removed.
	Expired(segs []Segment)
}

const (
	compactRateDefault = 32 << 20
	scrubRateDefault   = 1 << 20
	scrubEveryDefault  = 30 * 24 * time.Hour
	rateLimit          = 1 << 40
)

// window is the stretch of receive time whose files are merged with each other.
func (c *Config) window() time.Duration {
	if c.Retention > 0 && c.Retention < 240*time.Hour {
		return time.Hour
	}
	return 24 * time.Hour
}

const (
	// openFilesDefault times 30 KiB of parsed footer and page index is 8 MiB (with
	// the largest compacted files 25 MiB), and leaves most of the 1,024 descriptors
	// that a shell grants.
	openFilesDefault = 256
	// openFilesLimit keeps a typing error from taking every descriptor.
	openFilesLimit = 65536
)

func (c Config) withDefaults() Config {
	if c.OpenFilesMax == 0 {
		c.OpenFilesMax = openFilesDefault
	}
	if c.CompactBytesPerSecond == 0 {
		c.CompactBytesPerSecond = compactRateDefault
	}
	if c.ScrubBytesPerSecond == 0 {
		c.ScrubBytesPerSecond = scrubRateDefault
	}
	if c.ScrubEvery == 0 {
		c.ScrubEvery = scrubEveryDefault
	}
	return c
}

// Validate returns every problem of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("store directory is empty: set a path"))
	}
	if c.OpenFilesMax < 0 || c.OpenFilesMax > openFilesLimit {
		errs = append(errs, fmt.Errorf("open files %d: must be between 1 and %d, or 0 for the default", c.OpenFilesMax, openFilesLimit))
	}
	if c.Retention != 0 && c.Retention < time.Hour {
		errs = append(errs, fmt.Errorf("retention %v: must be an hour or more, or 0 to keep everything", c.Retention))
	}
	for _, r := range []struct {
		name string
		rate int
	}{{"compaction", c.CompactBytesPerSecond}, {"scrub", c.ScrubBytesPerSecond}} {
		if r.rate < 0 || r.rate > rateLimit {
			errs = append(errs, fmt.Errorf("%s rate of %d bytes per second: must be between 1 and %d, or 0 for the default", r.name, r.rate, rateLimit))
		}
	}
	if c.ScrubEvery < 0 {
		errs = append(errs, fmt.Errorf("scrub every %v: must be positive, or 0 for the default", c.ScrubEvery))
	}
	return errors.Join(errs...)
}
