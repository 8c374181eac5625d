package wal

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// Defaults of Config.
const (
	DefaultSegmentBytes  = 64 << 20
	DefaultCacheBytes    = 32 << 20
	DefaultIndexBytes    = 8 << 20
	DefaultLinger        = 100 * time.Microsecond
	DefaultScrubPerSec   = 4 << 20
	DefaultScrubEvery    = 10 * time.Minute
	DefaultSpareSegments = 4
)

// segmentBytesMin leaves room for a checkpoint of a few groups and some entries;
// tests use it, nobody else should want less than a MiB.
const segmentBytesMin = 8 << 10

// Config says where the log is and how it behaves. Only Dir is required.
type Config struct {
	// Dir holds the segments; it is made if missing.
	Dir string

	// Node and Cluster name the owner; they are written into every segment. Open
	// refuses a log whose names differ. Empty means not known and matches all.
	// At most 128 bytes each.
	Node    string
	Cluster string

	// SegmentBytes is the size of each segment file. 64 MiB by default. Larger
	// ones are recycled later, smaller ones cost more checkpoints (one small
	// record per group and segment). Existing segments keep their size until
	// they are recycled.
	SegmentBytes int64

	// CacheBytes bounds the memory for the latest entries of all groups, which
	// replication reads without touching the disk. 32 MiB by default.
	CacheBytes int64

	// IndexBytes is about how much memory says where old entries are, all groups
	// together. What exceeds it goes to files without a name in Dir, 6 to 9 bytes
	// an entry, and is read back when such an entry is read. 8 MiB by default: 1.4
	// million entries.
	IndexBytes int64

	// Linger is how long a group commit waits at most for the other groups that
	// wrote in the last two commits. It ends as soon as they are there, and gets
	// shorter while nobody comes. 100 us by default; negative is never.
	Linger time.Duration

	// SpareSegments is how many recycled segments are kept beyond the next one
	// and the reserve of two; more are deleted. 4 by default.
	SpareSegments int

	// ScrubBytesPerSecond is the rate at which sealed segments are read back to
	// find rot while peers can still repair it. 4 MiB/s by default (a GiB in
	// four minutes); negative is never.
	ScrubBytesPerSecond int64

	// ScrubEvery is how often everything is read back at most: a small log would
	// otherwise be read all the time. 10 minutes by default. Less finds rot sooner
	// and reads more.
	ScrubEvery time.Duration

	// Encrypt seals every record that is written from now on with AES-256-GCM; what
	// is on disk already stays as it is until its segment is recycled. It costs 32
	// bytes per record. Off by default.
	Encrypt bool

	// Keys are the operator keys (see ParseKeys). All of them read, the first one
	// is for new segments. Needed also without Encrypt while encrypted segments
	// are left.
	Keys []Key

	// OnDamage, if set, is called once per damaged segment, from a reader or from
	// a goroutine of the log: it must not wait for the log, and not close it.
	OnDamage func(*CorruptError)

	// FS is the file system; nil is the machine's.
	FS vfs.FS
}

// Validate reports every problem of the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("wal: Dir is empty: name the directory for the log"))
	}
	if c.SegmentBytes != 0 && (c.SegmentBytes < segmentBytesMin || c.SegmentBytes > math.MaxInt32 || c.SegmentBytes%4096 != 0) {
		errs = append(errs, fmt.Errorf("wal: SegmentBytes is %d: it must be a multiple of 4096 between %d and 2 GiB", c.SegmentBytes, segmentBytesMin))
	}
	for name, v := range map[string]string{"Node": c.Node, "Cluster": c.Cluster} {
		if len(v) > identityBytesMax {
			errs = append(errs, fmt.Errorf("wal: %s has %d bytes, at most %d fit", name, len(v), identityBytesMax))
		}
	}
	if c.Encrypt && len(c.Keys) == 0 {
		errs = append(errs, errors.New("wal: Encrypt is set and Keys is empty: give an operator key"))
	}
	if c.CacheBytes < 0 {
		errs = append(errs, fmt.Errorf("wal: CacheBytes is negative: %d", c.CacheBytes))
	}
	if c.IndexBytes < 0 {
		errs = append(errs, fmt.Errorf("wal: IndexBytes is negative: %d", c.IndexBytes))
	}
	if c.Linger > lingerMax {
		errs = append(errs, fmt.Errorf("wal: Linger is %v: every write waits that long, at most %v is allowed", c.Linger, lingerMax))
	}
	if c.ScrubEvery < 0 {
		errs = append(errs, fmt.Errorf("wal: ScrubEvery is negative: %v; to turn the scrubber off make ScrubBytesPerSecond negative", c.ScrubEvery))
	}
	if c.SpareSegments < 0 {
		errs = append(errs, fmt.Errorf("wal: SpareSegments is negative: %d", c.SpareSegments))
	}
	return errors.Join(errs...)
}

// lingerMax keeps a configuration from turning every acknowledgement into a wait.
const lingerMax = 10 * time.Millisecond

func (c Config) withDefaults() Config {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.SegmentBytes, DefaultSegmentBytes)
	def(&c.CacheBytes, DefaultCacheBytes)
	def(&c.IndexBytes, DefaultIndexBytes)
	def(&c.ScrubBytesPerSecond, DefaultScrubPerSec)
	if c.Linger == 0 {
		c.Linger = DefaultLinger
	}
	if c.ScrubEvery == 0 {
		c.ScrubEvery = DefaultScrubEvery
	}
	if c.SpareSegments == 0 {
		c.SpareSegments = DefaultSpareSegments
	}
	if c.FS == nil {
		c.FS = vfs.OS{}
	}
	return c
}
