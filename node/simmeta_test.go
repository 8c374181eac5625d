package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/cluster/meta"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/wal"
)

// TestMetaGroupGoesOnAfterASnapshotOverALongerLog is hashicorp/raft#697 for the
// meta group: its leader dies with entries that nobody else has, more than the
// snapshot covers that it is sent when it is back. Raft empties its log and goes
// on with the end of it that it remembers; it would refuse every append, and the
// node would never again hear of a change of table or registry.
func TestMetaGroupGoesOnAfterASnapshotOverALongerLog(t *testing.T) {
	if testing.Short() {
		t.Skip("simulates minutes of a cluster")
	}
	defer forgiveRaft(t)
	synctest.Test(t, func(t *testing.T) {
		w := newSimWorld(t, 1, 3, 1)
		defer w.close()
		var victim *simNode
		w.eventually("a leader of the meta group", simStart, func() error {
			for _, n := range w.members() {
				if n.node.Load().meta.IsLeader() && len(n.node.Load().meta.Voters()) == 3 {
					victim = n
					return nil
				}
			}
			return errors.New("nobody leads three voters")
		})
		if t.Failed() {
			return
		}
		peer := victim.node.Load().identity.Peer()
		victim.crash(false, false, nil)
		victim.logAlone(t, peer, 3000)
		survivors := make([]*meta.Meta, 0, 2)
		for _, n := range w.members() {
			if n != victim {
				survivors = append(survivors, n.node.Load().meta)
			}
		}
		drawEpochs(t, survivors[0], 700) // more than stays in a log behind a snapshot
		for _, m := range survivors {
			ctx, cancel := context.WithTimeout(context.Background(), simStart)
			if err := errors.Join(m.Sync(ctx), m.Snapshot(ctx)); err != nil {
				t.Error(err)
			}
			cancel()
		}
		// A leader that has been there all the time has an append on its way that ends
		// the victim's log where the two part. A new one begins at the end of its own.
		for _, m := range survivors {
			if !m.IsLeader() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), simStart)
			if err := m.HandOver(ctx); err != nil {
				t.Error(err)
			}
			cancel()
			break
		}
		victim.start()
		for range 3 {
			drawEpochs(t, survivors[0], 5)
			w.eventually("the node hears of the meta group", simHeal, func() error {
				if err := victim.ready(); err != nil {
					return err // and nothing of it may be looked at
				}
				if have, want := victim.node.Load().meta.State().Version, survivors[0].State().Version; have != want {
					return fmt.Errorf("its state is version %d, that of the others %d", have, want)
				}
				return nil
			})
		}
		if now := victim.node.Load().identity.Peer(); now != peer {
			t.Errorf("it is %s now, it was %s: nothing was lost that it had acknowledged", now, peer)
		}
	})
}

// TestMetaSnapshotThatRotsWhileTheNodeRunsIsReplaced and shown by every node.
func TestMetaSnapshotThatRotsWhileTheNodeRunsIsReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("simulates minutes of a cluster")
	}
	defer forgiveRaft(t)
	synctest.Test(t, func(t *testing.T) {
		w := newSimWorld(t, 2, 3, 1)
		defer w.close()
		if t.Failed() {
			return
		}
		victim, other := w.members()[0], w.members()[1]
		ctx, cancel := context.WithTimeout(context.Background(), simStart)
		defer cancel()
		if err := victim.node.Load().meta.Snapshot(ctx); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(victim.data(victim.lives), "meta")
		rotMeta(t, dir)
		w.eventually("the damage is shown by another node", simHeal, func() error { return w.showsSnapshotDamage(other, victim) })
		w.eventually("the snapshot is replaced", simHeal, func() error {
			if now, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin")); err != nil || len(now) != 2 {
				return fmt.Errorf("snapshots %v, %w", now, err)
			}
			_, err := shard.SnapshotDamage(context.Background(), dir, shard.Scrub{})
			return err
		})
		w.eventually("there is no alarm", simHeal, func() error {
			return victim.ask(func(ctx context.Context, cl *client.Client) error {
				st, err := cl.Status(ctx)
				if err == nil && len(st.Alarms) > 0 {
					err = fmt.Errorf("alarms %q", st.Alarms)
				}
				return err
			})
		})
	})
}

// TestMetaSnapshotThatRottedWhileTheNodeWasDownMakesItAnotherIncarnation where its
// log does not reach back far enough to do without.
func TestMetaSnapshotThatRottedWhileTheNodeWasDownMakesItAnotherIncarnation(t *testing.T) {
	if testing.Short() {
		t.Skip("simulates minutes of a cluster")
	}
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut=%v", cut), func(t *testing.T) {
			defer forgiveRaft(t)
			synctest.Test(t, func(t *testing.T) {
				w := newSimWorld(t, 3, 3, 1)
				defer w.close()
				if t.Failed() {
					return
				}
				victim := w.members()[1]
				m, peer := victim.node.Load().meta, victim.node.Load().identity.Peer()
				if cut {
					drawEpochs(t, m, 700) // more than stays behind a snapshot
				}
				ctx, cancel := context.WithTimeout(context.Background(), simStart)
				defer cancel()
				if err := errors.Join(m.Sync(ctx), m.Snapshot(ctx)); err != nil {
					t.Fatal(err)
				}
				victim.crash(false, false, nil)
				rotMeta(t, filepath.Join(victim.data(victim.lives), "meta"))
				victim.start()
				w.eventually("it serves", simHeal, victim.ready)
				if now := victim.node.Load().identity.Peer(); (now != peer) != cut {
					t.Errorf("it was %s and is %s, cut %v", peer, now, cut)
				}
				w.eventually("the damage is shown", simHeal, func() error { return w.showsSnapshotDamage(w.members()[0], victim) })
			})
		})
	}
}

// TestMetaReplicaWithARottenSnapshotLeadsAndVotesOnlyIfNobodyElseCan while another
// snapshot cannot be taken.
func TestMetaReplicaWithARottenSnapshotLeadsAndVotesOnlyIfNobodyElseCan(t *testing.T) {
	if testing.Short() {
		t.Skip("simulates minutes of a cluster")
	}
	defer forgiveRaft(t)
	synctest.Test(t, func(t *testing.T) {
		w := newSimWorld(t, 4, 3, 1)
		defer w.close()
		leader := func(among ...*simNode) (leads *simNode) {
			for _, n := range among {
				if life := n.node.Load(); life != nil && life.meta.IsLeader() && len(life.meta.Voters()) == 3 {
					leads = n
				}
			}
			return leads
		}
		var victim, other *simNode
		w.eventually("a leader of the meta group", simStart, func() error {
			if victim = leader(w.members()...); victim == nil {
				return errors.New("nobody leads three voters")
			}
			return nil
		})
		if t.Failed() {
			return
		}
		name := "a snapshot"
		victim.node.Load().rotten.Store(&name) // there is none that could be found well again
		w.eventually("another one leads", simHeal, func() error {
			if other = leader(w.members()...); other == nil || other == victim {
				return errors.New("it leads on")
			}
			return nil
		})
		if t.Failed() {
			return
		}
		down := time.Now()
		other.crash(false, false, nil)
		w.eventually("one of the two leads", simHeal, func() error {
			for _, n := range w.members() {
				if n != other && leader(n) != nil {
					return nil
				}
			}
			return errors.New("nobody leads")
		})
		if took := time.Since(down); took < metaAbstainMax/2 { // raft's own elections take a tenth
			t.Errorf("a leader was elected within %v", took)
		}
		victim.node.Load().rotten.Store(nil)
		other.start()
		w.eventually("everybody is ready", simHeal, func() error {
			for _, n := range w.members() {
				if err := n.ready(); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// rotMeta damages every snapshot of the meta group.
func rotMeta(t *testing.T, dir string) {
	t.Helper()
	if rotState(t, dir) == 0 {
		t.Fatalf("no snapshots in %s", dir)
	}
}

// rotState damages every snapshot in a group's directory and counts them.
func rotState(t *testing.T, dir string) int {
	t.Helper()
	states, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range states {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return len(states)
}

// showsSnapshotDamage asks one node for what another has found.
func (w *simWorld) showsSnapshotDamage(asked, victim *simNode) error {
	return asked.ask(func(ctx context.Context, cl *client.Client) error {
		st, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		for _, n := range st.Nodes {
			if n.ID == victim.id && len(n.Damages) == 1 && n.Damages[0].Kind == kindSnapshot {
				return nil
			}
		}
		return fmt.Errorf("nodes are %+v", st.Nodes)
	})
}

func drawEpochs(t *testing.T, m *meta.Meta, count int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), simStart)
	defer cancel()
	for range count {
		if _, err := m.NextEpoch(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// logAlone adds entries to the meta group's log of a node that is down, as a
// leader does that has lost its followers.
func (n *simNode) logAlone(t *testing.T, peer string, count int) {
	t.Helper()
	log, err := wal.Open(simLogger(), nil, wal.Config{Dir: "wal", FS: n.disk, Node: peer, SegmentBytes: 1 << 20, Linger: -1, ScrubBytesPerSecond: -1})
	if err != nil {
		t.Fatal(err)
	}
	g := log.Group(meta.Group)
	last, err := g.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	var e raft.Log
	if err := g.GetLog(last, &e); err != nil {
		t.Fatal(err)
	}
	var logs []*raft.Log
	for range count {
		last++
		logs = append(logs, &raft.Log{Index: last, Term: e.Term, Type: raft.LogCommand, Data: []byte("alone")})
	}
	for ; len(logs) > 0; logs = logs[min(len(logs), 500):] {
		if err := g.StoreLogs(logs[:min(len(logs), 500)]); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}
