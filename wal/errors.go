package wal

import (
	"errors"
	"fmt"
)

var (
	// ErrClosed answers calls after Close.
	ErrClosed = errors.New("write-ahead log is closed")

	// ErrFull answers an append while the disk has no room for another segment.
	// Nothing was written and nothing is latched; the same call succeeds once
	// there is room. The reserve still takes votes, configurations, small entries
	// and deletions.
	ErrFull = errors.New("write-ahead log is full: free disk space, intake resumes by itself")

	// ErrTooLarge answers an entry that fits in no segment.
	ErrTooLarge = errors.New("entry is larger than half a log segment")

	// ErrBeyondLast answers GetLog of an index that has not been written yet.
	// (raft.ErrLogNotFound is kept for what has been compacted away, because raft
	// answers it with a snapshot.)
	ErrBeyondLast = errors.New("entry is beyond the last one")

	// ErrGap answers StoreLogs with an entry that does not follow the last one.
	ErrGap = errors.New("entries are not contiguous")

	// ErrForeign is wrapped by Open for a log that another node or cluster wrote.
	ErrForeign = errors.New("log belongs to another node")
)

// errKeyNotFound has the text that hashicorp/raft compares with.
var errKeyNotFound = errors.New("not found")

// CorruptError is damage in a log: bytes that were acknowledged and cannot be
// read back. The entries behind it may have been acknowledged by this replica,
// so nothing may be cut.
type CorruptError struct {
	Segment string // file name
	Offset  int64  // where in the file
	Reason  string
	Err     error
}

func (e *CorruptError) Error() string {
	s := fmt.Sprintf("log segment %s is damaged at byte %d: %s", e.Segment, e.Offset, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s + "; who has lost entries must not vote: the node sets its log aside and is rebuilt from its peers as a new incarnation"
}

func (e *CorruptError) Unwrap() error { return e.Err }
