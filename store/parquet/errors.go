package parquet

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

var (
	// ErrClosed is returned by every method after Close.
	ErrClosed = errors.New("store is closed")
	// ErrNotFound says that no segment has this shard and range.
	ErrNotFound = errors.New("no such segment")
	// ErrSync marks a failed fsync. What was written may be lost although a
	// later fsync succeeds, so the process should exit.
	ErrSync = errors.New("fsync failed")
	// errLater marks a file that a later version wrote: it is no damage.
	errLater = errors.New("upgrade")
	// ErrCorrupt is matched by every CorruptError.
	ErrCorrupt = errors.New("segment is damaged")
)

// CorruptError says that a file is not what was written. The rows it holds are
// not lost as long as another replica has them: SetAside it and Install theirs.
type CorruptError struct {
	Path     string
	Shard    telemetry.ShardID
	From, To uint64
	Err      error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("segment %s of shard %d is damaged, fetch it from another replica: %v", e.Path, e.Shard, e.Err)
}

// Unwrap makes the error match ErrCorrupt and its cause.
func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// DigestError says that the rows of a range are not the expected ones: replicas
// disagree, or a segment that exists has another content than the batch.
type DigestError struct {
	Shard      telemetry.ShardID
	From, To   uint64
	Have, Want [16]byte
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("rows of shard %d range (%d, %d] have digest %s, expected %s",
		e.Shard, e.From, e.To, hex.EncodeToString(e.Have[:]), hex.EncodeToString(e.Want[:]))
}

// OverlapError refuses a range that shares log entries with another segment
// without being the same range. Nothing was written.
type OverlapError struct {
	Shard telemetry.ShardID
	Range Range
	Have  Range
}

func (e *OverlapError) Error() string {
	return fmt.Sprintf("range %v of shard %d overlaps the segment %v", e.Range, e.Shard, e.Have)
}

// BatchError refuses a batch that is not canonical (unsorted, unused dictionary
// entries, ...): its digest would not be comparable. Nothing was written.
type BatchError struct {
	Shard    telemetry.ShardID
	From, To uint64
	Reason   string
}

func (e *BatchError) Error() string {
	return fmt.Sprintf("batch of shard %d range (%d, %d] is not canonical: %s", e.Shard, e.From, e.To, e.Reason)
}

// IncompleteError says that ranges below the asked log index are not here (yet):
// the answer would lack rows. It matches store.ErrUnavailable.
type IncompleteError struct {
	Shard   telemetry.ShardID
	Missing []Range // ascending, never empty
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("shard %d lacks %d ranges, the first is %v; ask another replica or wait until they are fetched",
		e.Shard, len(e.Missing), e.Missing[0])
}

// Unwrap makes the error match store.ErrUnavailable.
func (e *IncompleteError) Unwrap() error { return store.ErrUnavailable }
