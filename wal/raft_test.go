package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// sumFSM folds every applied entry, in order, into a checksum.
type sumFSM struct {
	mu    sync.Mutex
	count uint64
	sum   uint32
}

func (f *sumFSM) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	f.sum = crc32.Update(f.sum, castagnoli, l.Data)
	return nil
}

func (f *sumFSM) read() (uint64, uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count, f.sum
}

func (f *sumFSM) Snapshot() (raft.FSMSnapshot, error) {
	count, sum := f.read()
	return sumSnapshot(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, count), sum)), nil
}

func (f *sumFSM) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err != nil || len(b) != 12 {
		return errors.Join(err, fmt.Errorf("snapshot has %d bytes", len(b)))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count, f.sum = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
	return r.Close()
}

type sumSnapshot []byte

func (s sumSnapshot) Persist(sink raft.SnapshotSink) error {
	_, err := sink.Write(s)
	return errors.Join(err, sink.Close())
}

func (sumSnapshot) Release() {}

// peer is one node of a raft group over a log of its own.
type peer struct {
	id    raft.ServerID
	disk  *vfs.Mem
	snaps *raft.InmemSnapshotStore
	fsm   *sumFSM
	trans *raft.InmemTransport
	log   *Log
	raft  *raft.Raft
}

func (p *peer) start(t *testing.T) {
	t.Helper()
	p.log = mustOpen(t, memConfig(p.disk))
	g := p.log.Group(7)
	p.fsm = &sumFSM{}
	_, p.trans = raft.NewInmemTransport(raft.ServerAddress(p.id))
	conf := raft.DefaultConfig()
	conf.LocalID = p.id
	conf.Logger = hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 300*time.Millisecond, 300*time.Millisecond, 200*time.Millisecond
	conf.CommitTimeout = 20 * time.Millisecond
	conf.TrailingLogs = 10
	conf.SnapshotThreshold = 1 << 40 // only when asked
	conf.SnapshotInterval = time.Hour
	var err error
	if p.raft, err = raft.NewRaft(conf, p.fsm, g, g, p.snaps, p.trans); err != nil {
		t.Fatal(err)
	}
}

func (p *peer) stop(t *testing.T) {
	t.Helper()
	if err := p.raft.Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
	_ = p.trans.Close()
	_ = p.log.Close()
}

func connect(peers []*peer) {
	for _, a := range peers {
		for _, b := range peers {
			if a != b {
				a.trans.Connect(raft.ServerAddress(b.id), b.trans)
			}
		}
	}
}

func leader(t *testing.T, peers []*peer) *peer {
	t.Helper()
	var found *peer
	waitFor(t, func() bool {
		for _, p := range peers {
			if p.raft.State() == raft.Leader && p.raft.VerifyLeader().Error() == nil {
				found = p
				return true
			}
		}
		return false
	})
	return found
}

// apply proposes n entries and returns how many were committed.
func apply(t *testing.T, peers []*peer, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		waitFor(t, func() bool {
			return leader(t, peers).raft.Apply(fmt.Appendf(nil, "entry %d %0200d", i, i), time.Second).Error() == nil
		})
	}
}

func wantSame(t *testing.T, peers []*peer, count uint64) {
	t.Helper()
	waitFor(t, func() bool {
		_, want := peers[0].fsm.read()
		for _, p := range peers {
			if n, sum := p.fsm.read(); n < count || sum != want {
				return false
			}
		}
		return true
	})
}

// TestRaftLosesNothingWhenAllNodesLosePower runs three real raft nodes, takes
// the power from all of them, and goes on from what their disks hold: with a
// follower that is behind a snapshot, and one that has a conflict.
func TestRaftLosesNothingWhenAllNodesLosePower(t *testing.T) {
	var peers []*peer
	var conf raft.Configuration
	for i := range 3 {
		p := &peer{id: raft.ServerID(fmt.Sprintf("n%d", i)), disk: vfs.NewMem(), snaps: raft.NewInmemSnapshotStore()}
		conf.Servers = append(conf.Servers, raft.Server{ID: p.id, Address: raft.ServerAddress(p.id)})
		peers = append(peers, p)
	}
	for _, p := range peers {
		p.start(t)
	}
	connect(peers)
	if err := peers[0].raft.BootstrapCluster(conf).Error(); err != nil {
		t.Fatal(err)
	}
	total := 0
	more := func(alive []*peer, n int) { apply(t, alive, total, n); total += n }
	more(peers, 60)
	wantSame(t, peers, uint64(total))

	for round := range 3 {
		for _, p := range peers {
			p.disk = p.disk.CrashClone(nil)
			p.stop(t)
		}
		for _, p := range peers {
			p.start(t)
		}
		connect(peers)
		more(peers, 20)
		wantSame(t, peers, uint64(total))
		for _, p := range peers {
			if _, err := verify(p.disk.Clone(), "wal"); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}

	// One node is away while the others compact: it comes back by a snapshot.
	l := leader(t, peers)
	var away *peer
	var rest []*peer
	for _, p := range peers {
		if p != l && away == nil {
			away = p
		} else {
			rest = append(rest, p)
		}
	}
	away.disk = away.disk.CrashClone(nil)
	away.stop(t)
	more(rest, 60)
	for _, p := range rest {
		g := p.log.Group(7)
		g.SetFloor(p.raft.AppliedIndex())
		if err := p.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		if first, _ := g.FirstIndex(); first < 100 {
			t.Errorf("compaction left entries from %d on", first)
		}
	}
	away.start(t)
	connect(peers)
	more(peers, 20)
	wantSame(t, peers, uint64(total))
	if first, _ := away.log.Group(7).FirstIndex(); first < 100 {
		t.Errorf("node that installed a snapshot has entries from %d on", first)
	}
	for _, p := range peers {
		p.stop(t)
	}
}
