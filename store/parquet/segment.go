package parquet

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/telemetry"
)

// Segment describes one immutable file: the readings that a range of a shard's
// log became. A file that compaction made of several flushes has as many parts.
type Segment struct {
	Shard            telemetry.ShardID
	From, To         uint64 // log indexes, From exclusive, To inclusive
	Rows             uint64
	Messages         uint64   // applied messages in the range
	Bytes            int64    // size of the file; differs between replicas of other versions
	Digest           [16]byte // Digest of the batch, or of the list of parts; the same on every replica
	MinTime, MaxTime int64    // device times of the rows, microseconds, both inclusive; 0 without rows
	MaxReceived      int64    // latest receive time of the rows, microseconds; 0 without rows
	Parts            int      // flushes in the file; 0 where retention has removed it
	Expired          bool     // the range is done and its rows are gone for good: see Config.Retention
}

// Range is a range of log indexes, From exclusive, To inclusive.
type Range struct {
	From, To uint64
}

func (r Range) String() string { return fmt.Sprintf("(%d, %d]", r.From, r.To) }

// Range is the segment's range of log indexes.
func (s *Segment) Range() Range { return Range{From: s.From, To: s.To} }

const (
	suffixFile    = ".parquet"
	suffixExpired = ".expired" // in place of suffixFile: the range is done, its rows are gone by retention
	suffixTemp    = ".tmp"     // after suffixFile: being written, or left by a crash
	suffixDamaged = ".damaged" // after suffixFile: set aside, kept for a person to look at
)

// dirName is the folder of a shard inside the store's directory.
func dirName(shard telemetry.ShardID) string { return fmt.Sprintf("shard-%03d", uint32(shard)) }

// fileName names a segment by the first and the last log index in it.
func fileName(r Range) string { return fmt.Sprintf("%016x-%016x%s", r.From+1, r.To, suffixFile) }

func parseDirName(name string) (telemetry.ShardID, bool) {
	digits, ok := strings.CutPrefix(name, "shard-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	shard := telemetry.ShardID(n)
	return shard, err == nil && dirName(shard) == name
}

// expiredName names the record of an expired range.
func expiredName(r Range) string { return strings.TrimSuffix(fileName(r), suffixFile) + suffixExpired }

// parseExpiredName is the inverse of expiredName.
func parseExpiredName(name string) (Range, bool) {
	stem, ok := strings.CutSuffix(name, suffixExpired)
	if !ok {
		return Range{}, false
	}
	return parseFileName(stem + suffixFile)
}

func parseFileName(name string) (Range, bool) {
	stem, ok := strings.CutSuffix(name, suffixFile)
	if !ok || len(stem) != 33 || stem[16] != '-' {
		return Range{}, false
	}
	first, err1 := strconv.ParseUint(stem[:16], 16, 64)
	last, err2 := strconv.ParseUint(stem[17:], 16, 64)
	if err1 != nil || err2 != nil || first == 0 || first > last {
		return Range{}, false
	}
	r := Range{From: first - 1, To: last}
	return r, fileName(r) == name
}
