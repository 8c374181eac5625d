package shard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func within20s(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAttributesAreReadAndPutThroughAnyNode(t *testing.T) {
	c := newTestCluster(t, 3, 2)
	ctx := within20s(t)
	if _, err := c.nodes[0].router.Attributes(ctx, "d1"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("an unknown device: %v, want ErrNotFound", err)
	}
	var last PutResult
	for i := range 6 {
		value := fmt.Sprint(i)
		p := Put{Device: "d1", Attributes: []telemetry.Attribute{{Key: "n", Value: value}}}
		if i > 0 {
			p.Match = Tags{Given: true, Revisions: []uint64{last.Revision}}
		}
		res, err := c.nodes[i%3].router.PutAttributes(ctx, p)
		if want := [2]PutStatus{PutStored, PutCreated}[min(1, max(0, 1-i))]; err != nil || res.Status != want {
			t.Fatalf("put %d: %+v, %v, want status %d", i, res, err, want)
		}
		last = res
		for _, n := range c.nodes {
			a, err := n.router.Attributes(ctx, "d1")
			if err != nil || a.Revision != res.Revision || a.Attributes[0].Value != value {
				t.Fatalf("read through %s: %+v, %v, want %q at %d", n.peer, a, err, value, res.Revision)
			}
		}
	}
	if _, err := c.nodes[1].router.PutAttributes(ctx, Put{Device: "d 1"}); !IsInvalid(err) {
		t.Fatalf("a bad device id: %v, want an invalid put", err)
	}
	c.sameDigests(telemetry.ShardOf("d1", 2))
}

// TestMinorityAnswersNothing cuts a node off: it neither reads nor writes.
func TestMinorityAnswersNothing(t *testing.T) {
	c := newPausableCluster(t, 3, 1)
	ctx := within20s(t)
	if _, err := c.nodes[0].router.PutAttributes(ctx, Put{Device: "d1"}); err != nil {
		t.Fatal(err)
	}
	var old *testNode
	eventually(t, "somebody leads", func() bool { old = c.leader(0); return old != nil })
	old.gate.shut()
	defer old.gate.release()
	short, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
	defer cancel()
	if a, err := old.router.Attributes(short, "d1"); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("the cut off leader answers %+v, %v", a, err)
	}
	short, cancel = context.WithTimeout(ctx, 1500*time.Millisecond)
	defer cancel()
	if res, err := old.router.PutAttributes(short, Put{Device: "d1"}); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("the cut off leader answers a put with %+v, %v", res, err)
	}
	for _, n := range c.nodes {
		if n != old {
			if _, err := n.router.PutAttributes(ctx, Put{Device: "d1"}); err != nil {
				t.Fatalf("through %s: %v", n.peer, err)
			}
		}
	}
}

// TestLeadershipIsProvedByWhatIsAskedNow keeps the heartbeats going, so that
// raft believes that it leads, while the voters say that they are in a later
// term or say nothing.
func TestLeadershipIsProvedByWhatIsAskedNow(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	var n *testNode
	eventually(t, "somebody leads", func() bool { n = c.leader(0); return n != nil })
	s, _ := n.host.Shard(0)
	later := Asker(func(context.Context, string, uint32, []byte) ([]byte, error) {
		return appendAnswer(nil, wire.AppendUint(nil, s.raft.CurrentTerm()+1), nil), nil
	})
	silent := Asker(func(ctx context.Context, _ string, _ uint32, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	for what, ask := range map[string]*Asker{"voters in a later term": &later, "silent voters": &silent} {
		n.asked.Store(ask)
		if err := s.Verify(); err == nil {
			t.Errorf("%s: the replica is sure that it leads", what)
		}
	}
	n.asked.Store(nil)
	eventually(t, "the leader is sure again", func() bool { return c.leader(0) != nil })
}

// TestLeadershipIsHandedOnlyToWhoIsNear: a replica that is far behind, or that
// does not answer, would hold up its shard.
func TestLeadershipIsHandedOnlyToWhoIsNear(t *testing.T) {
	c := newTestCluster(t, 3, 1)
	p := c.publisher(0)
	p.publish(nearMax + 8)
	var n *testNode
	eventually(t, "somebody leads", func() bool { n = c.leader(0); return n != nil })
	n.host.mu.RLock()
	hs := n.host.shards[0]
	n.host.mu.RUnlock()
	other := c.nodes[0].peer
	if n == c.nodes[0] {
		other = c.nodes[1].peer
	}
	eventually(t, "the other one is near", func() bool { return n.host.near(hs, other) })
	behind := Asker(func(context.Context, string, uint32, []byte) ([]byte, error) {
		return appendAnswer(nil, wire.AppendUint(wire.AppendUint(nil, 1), 1), nil), nil
	})
	silent := Asker(func(ctx context.Context, _ string, _ uint32, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	for what, ask := range map[string]*Asker{"behind": &behind, "silent": &silent} {
		n.asked.Store(ask)
		if n.host.near(hs, other) {
			t.Errorf("%s: the replica counts as near", what)
		}
	}
	n.asked.Store(nil)
}

// operation is one step of a client, and what came of it. Values are unique, so
// that a revision is a value as far as the history knows.
type operation struct {
	device string
	kind   string // get, put, cas, create
	expect string // cas: the value whose revision If-Match names
	value  string // put, cas, create
}

type outcome struct {
	value   string // get; "" is not found
	done    bool   // put, cas, create: it happened
	unknown bool
}

// register is the model: a device's value, "" while it does not exist.
var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := map[string][]porcupine.Operation{}
		for _, op := range history {
			d := op.Input.(operation).device
			parts[d] = append(parts[d], op)
		}
		var out [][]porcupine.Operation
		for _, p := range parts {
			out = append(out, p)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		op, res, value := input.(operation), output.(outcome), state.(string)
		holds := true
		switch op.kind {
		case "get":
			return res.value == value, state
		case "cas":
			holds = value == op.expect
		case "create":
			holds = value == ""
		}
		if !res.unknown && res.done != holds {
			return false, state
		}
		if holds {
			return true, op.value
		}
		return true, state
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
}

// recorder drives one shard's devices and keeps the history.
type recorder struct {
	c       *testCluster
	began   time.Time
	devices []string

	mu      sync.Mutex
	history []porcupine.Operation
	values  map[string]string // device and revision -> value
	broken  []string
}

// client works until ctx ends. Its reads and writes go through nodes drawn at
// random; one that has no known outcome stays open for ever.
func (r *recorder) client(ctx context.Context, id int) {
	rng := rand.New(rand.NewPCG(7, uint64(id)))
	known := map[string]Attributes{}
	for n := 0; ctx.Err() == nil; n++ {
		op := operation{device: r.devices[rng.IntN(len(r.devices))], value: fmt.Sprintf("%d-%d", id, n)}
		last, read := known[op.device]
		switch draw := rng.IntN(10); {
		case draw < 5:
			op.kind, op.value = "get", ""
		case draw < 9 && read:
			op.kind, op.expect = "cas", last.Attributes[0].Value
		case draw == 9:
			op.kind = "put"
		default:
			op.kind = "create"
		}
		r.step(id, r.c.nodes[rng.IntN(len(r.c.nodes))], op, last.Revision, known)
	}
}

func (r *recorder) step(id int, n *testNode, op operation, revision uint64, known map[string]Attributes) {
	n.using.RLock() // it is not killed meanwhile
	defer n.using.RUnlock()
	if n.mux == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	call := time.Since(r.began)
	var out outcome
	if op.kind == "get" {
		a, err := n.router.Attributes(ctx, op.device)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return // nothing was read
		}
		if err == nil {
			out.value = a.Attributes[0].Value
			known[op.device] = a
			r.learn(op.device, a.Revision, out.value)
		}
	} else {
		p := Put{Device: op.device, Attributes: []telemetry.Attribute{{Key: "v", Value: op.value}}}
		switch op.kind {
		case "cas":
			p.Match = Tags{Given: true, Revisions: []uint64{revision}}
		case "create":
			p.NoneMatch = Tags{Given: true, Any: true}
		}
		res, err := n.router.PutAttributes(ctx, p)
		var unknown *OutcomeUnknownError
		switch {
		case errors.As(err, &unknown):
			out.unknown = true
		case err != nil:
			return // certainly not proposed
		default:
			if out.done = res.Status != PutMismatch; out.done {
				known[op.device] = Attributes{Revision: res.Revision, Attributes: p.Attributes}
				r.learn(op.device, res.Revision, op.value)
			}
		}
	}
	r.record(id, op, out, call)
}

func (r *recorder) record(id int, op operation, out outcome, call time.Duration) {
	ret := int64(time.Since(r.began))
	if out.unknown {
		ret = int64(time.Hour)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, porcupine.Operation{ClientId: id, Input: op, Call: int64(call), Output: out, Return: ret})
}

// learn checks that a revision never stands for two values.
func (r *recorder) learn(device string, revision uint64, value string) {
	key := fmt.Sprintf("%s at %d", device, revision)
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, ok := r.values[key]; ok && was != value {
		r.broken = append(r.broken, fmt.Sprintf("%s is %q and %q", key, was, value))
	}
	r.values[key] = value
}

// disturb changes leaders, stops and kills nodes, one at a time.
func (r *recorder) disturb(rng *rand.Rand) string {
	leader := r.c.leader(0)
	if leader == nil {
		time.Sleep(50 * time.Millisecond)
		return ""
	}
	other := r.c.nodes[rng.IntN(len(r.c.nodes))]
	switch rng.IntN(4) {
	case 0:
		s, _ := leader.host.Shard(0)
		_ = s.HandOver(other.peer) // to itself: nothing
		return "hand over"
	case 1:
		leader.using.Lock()
		leader.kill()
		time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
		leader.start()
		leader.using.Unlock()
		return "kill"
	case 2:
		other.gate.shut()
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		other.gate.release()
		return "pause of any"
	default:
		leader.gate.shut()
		time.Sleep(time.Duration(2500+rng.IntN(1000)) * time.Millisecond) // longer than an election
		leader.gate.release()
		return "pause of the leader"
	}
}

// TestRegisterIsLinearizable records what clients see of a few devices while
// leaders change, stand still and die, and looks for an order that explains it.
func TestRegisterIsLinearizable(t *testing.T) {
	c := newPausableCluster(t, 3, 1)
	r := &recorder{c: c, began: time.Now(), devices: []string{"d1", "d2", "d3"}, values: map[string]string{}}
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for id := range 6 {
		clients.Go(func() { r.client(ctx, id) })
	}
	rng := rand.New(rand.NewPCG(11, 13))
	var faults []string
	for time.Since(r.began) < 12*time.Second || len(faults) < 6 {
		if f := r.disturb(rng); f != "" {
			faults = append(faults, f)
			time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		}
	}
	stop()
	clients.Wait()
	if len(r.broken) > 0 {
		t.Fatalf("revisions with two values: %s", strings.Join(r.broken, "; "))
	}
	counts := map[string]int{}
	for _, op := range r.history {
		kind := op.Input.(operation).kind
		counts[kind]++
		if op.Output.(outcome).unknown {
			counts["unknown"]++
		}
	}
	t.Logf("%d operations %v, faults %v", len(r.history), counts, faults)
	if counts["get"] == 0 || counts["cas"] == 0 {
		t.Fatal("nothing was read or nothing was compared: the history proves nothing")
	}
	switch res := porcupine.CheckOperationsTimeout(register, r.history, 2*time.Minute); res {
	case porcupine.Illegal:
		t.Fatal("the history is not linearizable")
	case porcupine.Unknown:
		t.Log("no order was found in time, and none was ruled out")
	}
	c.sameDigests(0)
}
