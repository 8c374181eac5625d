package meta

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

const (
	snapshotVersion     = 1
	snapshotHeaderBytes = 5
	// snapshotBytesMax bounds what Restore reads: 4,096 shards and 99 nodes take
	// 0.5 MiB.
	snapshotBytesMax = 256 << 20
)

// fsm publishes the state that raft applies. Only raft's goroutine writes it.
type fsm struct {
	state atomic.Pointer[State]

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
}

func newFSM() *fsm {
	f := &fsm{changed: make(chan struct{})}
	f.state.Store((&State{}).clone())
	return f
}

func (f *fsm) publish(s *State) {
	f.state.Store(s)
	f.mu.Lock()
	ch := f.changed
	f.changed = make(chan struct{})
	f.mu.Unlock()
	close(ch)
}

// watch returns the channel that the next change closes. A reader that takes the
// channel first and the state afterwards misses nothing.
func (f *fsm) watch() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any {
	c, err := decodeCommand(l.Data)
	if err != nil {
		return refuse(codeInvalid, "%v", err)
	}
	old := f.state.Load()
	next, r := apply(old, c)
	if next != old {
		f.publish(next)
	}
	return r
}

// Snapshot implements raft.FSM; the state is immutable, so it costs nothing.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return snapshot{f.state.Load()}, nil
}

// Restore implements raft.FSM.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, snapshotBytesMax))
	if err != nil {
		return fmt.Errorf("read meta snapshot: %w", err)
	}
	s, err := decodeSnapshot(b)
	if err != nil {
		return err
	}
	f.publish(s)
	return nil
}

type snapshot struct{ state *State }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	b, err := encodeSnapshot(s.state)
	if err == nil {
		_, err = sink.Write(b)
	}
	if err != nil {
		_ = sink.Cancel() // the write's error says more
		return fmt.Errorf("write meta snapshot: %w", err)
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("close meta snapshot: %w", err)
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (snapshot) Release() {}

func encodeSnapshot(s *State) ([]byte, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode meta snapshot: %w", err)
	}
	b := make([]byte, snapshotHeaderBytes, snapshotHeaderBytes+len(body))
	b[0] = snapshotVersion
	binary.LittleEndian.PutUint32(b[1:], 0) // namespace
	return append(b, body...), nil
}

func decodeSnapshot(b []byte) (*State, error) {
	if len(b) < snapshotHeaderBytes {
		return nil, fmt.Errorf("decode meta snapshot: %d bytes, the header has %d", len(b), snapshotHeaderBytes)
	}
	if b[0] != snapshotVersion {
		return nil, fmt.Errorf("decode meta snapshot: format version %d, this program reads %d", b[0], snapshotVersion)
	}
	if ns := binary.LittleEndian.Uint32(b[1:]); ns != 0 {
		return nil, fmt.Errorf("decode meta snapshot: namespace %d, this program knows 0", ns)
	}
	var s State
	if err := json.Unmarshal(b[snapshotHeaderBytes:], &s); err != nil {
		return nil, fmt.Errorf("decode meta snapshot: %w", err)
	}
	if uint64(s.Shards) != uint64(len(s.Table)) {
		return nil, fmt.Errorf("decode meta snapshot: %d shards, a table of %d", s.Shards, len(s.Table))
	}
	return s.clone(), nil
}
