package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/telemetry/block"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fate is what the network does with one transmission.
type fate int

const (
	pass      fate = iota
	lostGoing      // never arrives; the sender hears of a broken connection
	lostBack       // arrives, the answer is lost
	late           // arrives in a moment, perhaps behind later ones; the sender waits
	twice          // arrives, and again a moment later
	notLeader
	busy
	fates
)

var errCut = errors.New("connection lost")

// network is a Router with replicas of real shards behind it and faults before
// them.
type network struct {
	mu      sync.Mutex
	judge   func() fate
	shards  map[telemetry.ShardID]*shard.Replay
	index   uint64
	running sync.WaitGroup
	sends   atomic.Int64
	forget  bool // shards answer as if they had forgotten this origin
}

func newNetwork(shards int, judge func() fate) *network {
	n := &network{judge: judge, shards: map[telemetry.ShardID]*shard.Replay{}}
	for id := range shards {
		n.shards[telemetry.ShardID(id)] = shard.NewReplay(telemetry.ShardID(id))
	}
	return n
}

func (n *network) apply(id telemetry.ShardID, b []byte) shard.Result {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.forget {
		return shard.Result{Status: shard.StatusUnknown}
	}
	n.index++
	res, _ := n.shards[id].Apply(n.index, b).(shard.Result)
	return res
}

func (n *network) Propose(id telemetry.ShardID, b []byte, done func(shard.Result, error)) {
	n.sends.Add(1)
	n.mu.Lock()
	f := n.judge()
	n.mu.Unlock()
	switch f {
	case pass:
		done(n.apply(id, b), nil)
	case lostGoing:
		done(shard.Result{}, errCut)
	case lostBack:
		n.apply(id, b)
		done(shard.Result{}, errCut)
	case late, twice:
		if f == twice {
			n.apply(id, b)
		}
		n.running.Go(func() {
			time.Sleep(time.Millisecond)
			done(n.apply(id, b), nil)
		})
	case notLeader:
		done(shard.Result{}, &shard.NotLeaderError{Shard: id})
	default:
		done(shard.Result{}, shard.ErrBusy)
	}
}

// stored lists what the shards hold, per device in the order of the log.
func (n *network) stored(t interface{ Fatalf(string, ...any) }) map[string][]int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := map[string][]int64{}
	for _, s := range n.shards {
		err := s.EachPending(func(b *block.Block, e *block.Entry, _ *block.Reading) {
			dev := strings.Clone(b.Devices[e.Device])
			out[dev] = append(out[dev], e.Time)
		})
		if err != nil {
			t.Fatalf("read pending rows: %v", err)
		}
	}
	return out
}

func open(t interface{ Fatalf(string, ...any) }, r Router, change func(*Config)) *Pipeline {
	cfg := Config{Origin: "n0.00000001", Epoch: 7, Shards: 3, BytesOpenMax: 1 << 20, Linger: time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	p, err := New(slog.New(slog.NewTextHandler(io.Discard, nil)), nil, cfg, r)
	if err != nil {
		t.Fatalf("open pipeline: %v", err)
	}
	return p
}

// ledger counts the reports of every publish.
type ledger struct {
	mu      sync.Mutex
	reports map[int]int
	results map[int]telemetry.Result
}

func newLedger() *ledger { return &ledger{reports: map[int]int{}, results: map[int]telemetry.Result{}} }

func (l *ledger) done(i int) func(telemetry.Result) {
	return func(r telemetry.Result) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.reports[i]++
		l.results[i] = r
	}
}

const start = int64(1_767_225_600_000_000)

func publish(p *Pipeline, device string, i int, done func(telemetry.Result)) {
	payload := fmt.Sprintf(`{"timestamp":%d,"sensors":{"t":%d}}`, start+int64(i)*1000, i)
	p.Publish(&telemetry.Publish{Client: "c", Device: device, Topic: "devices/" + device + "/telemetry", Payload: []byte(payload), Received: start, QoS: 1}, done)
}

func drain(t interface{ Fatalf(string, ...any) }, p *Pipeline) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.Drain(ctx); err != nil {
		t.Fatalf("%v", err)
	}
}

// TestEveryPublishIsReportedOnceAndStoredOnceInOrder sends through a network
// that loses, delays, repeats, reorders and refuses.
func TestEveryPublishIsReportedOnceAndStoredOnceInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		health := rapid.IntRange(0, 12).Draw(t, "health")
		rnd := rand.New(rand.NewPCG(seed, 1))
		n := newNetwork(3, func() fate {
			if rnd.IntN(4+health) > 3 {
				return pass
			}
			return fate(rnd.IntN(int(fates)))
		})
		p := open(t, n, nil)
		l := newLedger()
		count := rapid.IntRange(1, 150).Draw(t, "publishes")
		want := map[string][]int64{}
		for i := range count {
			dev := fmt.Sprintf("d%d", i%5)
			want[dev] = append(want[dev], start+int64(i)*1000)
			publish(p, dev, i, l.done(i))
			if i%40 == 39 {
				time.Sleep(2 * time.Millisecond) // several beats
			}
		}
		drain(t, p)
		p.Close()
		n.running.Wait()
		for i := range count {
			if r := l.results[i]; l.reports[i] != 1 || r.Applied != 1 {
				t.Fatalf("publish %d was reported %d times, last %+v, want applied once", i, l.reports[i], r)
			}
		}
		got := n.stored(t)
		for dev, times := range want {
			if fmt.Sprint(got[dev]) != fmt.Sprint(times) {
				t.Fatalf("device %s has %v, want %v", dev, got[dev], times)
			}
		}
	})
}

func TestForgottenOriginReportsUnknownAndGoesOnUnderANewEpoch(t *testing.T) {
	n := newNetwork(3, func() fate { return pass })
	p := open(t, n, nil)
	defer p.Close()
	l := newLedger()
	publish(p, "d1", 1, l.done(1))
	n.forget = true
	publish(p, "d1", 2, l.done(2))
	n.forget = false
	publish(p, "d1", 3, l.done(3))
	drain(t, p)
	if l.results[1].Applied != 1 || l.results[2].Unknown != 1 || l.results[2].Applied != 0 || l.results[3].Applied != 1 {
		t.Fatalf("results %+v, want applied, unknown, applied", l.results)
	}
	for i, k := range l.reports {
		if k != 1 {
			t.Errorf("publish %d was reported %d times", i, k)
		}
	}
}

func TestShardThatRefusesEveryEpochEndsItsQueueAndReusesNone(t *testing.T) {
	n := newNetwork(3, func() fate { return pass })
	n.forget = true
	p := open(t, n, nil)
	defer p.Close()
	l := newLedger()
	q := p.queues[telemetry.ShardOf("d1", 3)]
	q.resets = resetsMax - 1
	for i := range 4 {
		publish(p, "d1", i, l.done(i))
	}
	for i := range 4 {
		if l.reports[i] != 1 || l.results[i].Unknown != 1 {
			t.Fatalf("publish %d: %d reports, %+v, want unknown once", i, l.reports[i], l.results[i])
		}
	}
	if sent := n.sends.Load(); sent != 2 || q.resets != resetsMax {
		t.Fatalf("%d blocks sent, %d resets, want one block in each of the two epochs left", sent, q.resets)
	}
}

func TestPublishBeyondTheBoundIsRefusedAndNeverProposed(t *testing.T) {
	n := newNetwork(3, func() fate { return notLeader })
	p := open(t, n, func(c *Config) { c.BytesOpenMax = 10 * (telemetry.PublishOverhead + 100) })
	l := newLedger()
	refused := 0
	for i := range 200 { // payloads of almost nothing must not be free
		p.Publish(&telemetry.Publish{Client: "c", Device: "d1", Topic: "t", Payload: nil, Received: start, QoS: 1}, l.done(i))
		if l.results[i].Refusal == telemetry.RefusalQuota {
			refused++
		}
	}
	if refused == 0 || p.Refused() != uint64(refused) || p.Open() != int64(200-refused) {
		t.Fatalf("%d refused, ledger says %d, %d open", refused, p.Refused(), p.Open())
	}
	p.Close()
	for i := range 200 {
		if l.reports[i] != 1 {
			t.Fatalf("publish %d was reported %d times after Close", i, l.reports[i])
		}
	}
	if p.Open() != 0 || p.open.Load() != 0 {
		t.Fatalf("%d publishes, %d bytes open after Close", p.Open(), p.open.Load())
	}
}

func TestDrainWaitsForTheLastReportAndRefusesWhatComesAfter(t *testing.T) {
	var leaderless atomic.Bool
	leaderless.Store(true)
	n := newNetwork(3, func() fate {
		if leaderless.Load() {
			return notLeader
		}
		return pass
	})
	p := open(t, n, nil)
	defer p.Close()
	l := newLedger()
	publish(p, "d1", 1, l.done(1))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := p.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drain without a leader: %v", err)
	}
	publish(p, "d1", 2, l.done(2))
	if l.results[2].Unknown != 1 {
		t.Fatalf("a publish while draining: %+v, want unknown", l.results[2])
	}
	leaderless.Store(false)
	drain(t, p)
	if l.reports[1] != 1 || l.results[1].Applied != 1 {
		t.Fatalf("the open publish: %d reports, %+v", l.reports[1], l.results[1])
	}
}

func TestAnswerCutShortAcknowledgesNothingItDoesNotName(t *testing.T) {
	p := open(t, newNetwork(3, func() fate { return pass }), nil)
	defer p.Close()
	l := newLedger()
	pub := &publication{pipeline: p, open: 2, done: l.done(0)}
	p.queues[0].settle(&sealed{waiters: []waiter{pub, pub}}, telemetry.Applied, shard.Result{Outcomes: []telemetry.Outcome{telemetry.Duplicate}})
	if r := l.results[0]; r.Applied != 0 || r.Duplicate != 1 || r.Unknown != 1 {
		t.Fatalf("result %+v, want one duplicate and one unknown", r)
	}
}

func TestRedeliveredGarbageAndUntimedReadingsAreRecognised(t *testing.T) {
	n := newNetwork(3, func() fate { return pass })
	p := open(t, n, nil)
	defer p.Close()
	for name, c := range map[string]struct {
		payload string
		want    telemetry.Result
	}{
		"garbage": {`{"sensors":`, telemetry.Result{Quarantined: 1}},
		"untimed": {`{"sensors":{"t":1}}`, telemetry.Result{Duplicate: 1}},
	} {
		l := newLedger()
		pub := telemetry.Publish{Client: name, Device: "d1", Topic: "devices/d1/telemetry", Payload: []byte(c.payload), Received: start, PacketID: 9, QoS: 1}
		first, again := pub, pub
		again.Dup, again.Received = true, start+1_000_000
		again.Payload = bytes.Clone(pub.Payload)
		p.Publish(&first, l.done(0))
		p.Publish(&again, l.done(1))
		drainOpen(t, p)
		got := l.results[1]
		got.Reason = ""
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s again: %+v, want %+v", name, got, c.want)
		}
	}
	rows := n.stored(t)
	if len(rows["d1"]) != 1 {
		t.Fatalf("%d rows, want one", len(rows["d1"]))
	}
}

func drainOpen(t *testing.T, p *Pipeline) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); p.Open() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("publishes stay open")
		}
	}
}

func TestBusyNodeGathersWhatComesWithinABeat(t *testing.T) {
	var held []func()
	var mu sync.Mutex
	r := routerFunc(func(_ telemetry.ShardID, b []byte, done func(shard.Result, error)) {
		mu.Lock()
		defer mu.Unlock()
		held = append(held, func() { done(shard.Result{Status: shard.StatusApplied}, nil) })
	})
	p := open(t, r, func(c *Config) { c.Shards, c.Linger = 1, 20*time.Millisecond })
	l := newLedger()
	for i := range 300 {
		publish(p, "d1", i, l.done(i))
	}
	for deadline := time.Now().Add(10 * time.Second); p.Open() > 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		mu.Lock()
		answers := held
		held = nil
		mu.Unlock()
		for _, a := range answers {
			a()
		}
	}
	defer p.Close()
	if blocks := p.queues[0].seq; p.Open() != 0 || blocks > 60 {
		t.Fatalf("%d publishes open, 300 went in %d blocks", p.Open(), blocks)
	}
}

type routerFunc func(telemetry.ShardID, []byte, func(shard.Result, error))

func (f routerFunc) Propose(id telemetry.ShardID, b []byte, done func(shard.Result, error)) {
	f(id, b, done)
}

func TestArrayTravelsAsOneBlock(t *testing.T) {
	n := newNetwork(1, func() fate { return pass })
	p := open(t, n, func(c *Config) { c.Shards = 1 })
	defer p.Close()
	var b bytes.Buffer
	for i := range 50 {
		fmt.Fprintf(&b, `,{"timestamp":%d,"sensors":{"t":%d}}`, start+int64(i)*1000, i)
	}
	array := append(append([]byte{'['}, b.Bytes()[1:]...), ']')
	l := newLedger()
	p.Publish(&telemetry.Publish{Client: "c", Device: "d1", Topic: "t", Payload: array, Received: start, QoS: 1}, l.done(0))
	drain(t, p)
	if r := l.results[0]; r.Applied != 50 || n.sends.Load() != 1 {
		t.Fatalf("%+v in %d blocks, want 50 applied in one", r, n.sends.Load())
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	err := (&Config{Epoch: epochMax + 1, Linger: -1}).Validate()
	for _, want := range []string{"origin", "epoch", "shards", "bytes_open_max", "linger"} {
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestWritesAreNamedWhenAsked(t *testing.T) {
	p := open(t, newNetwork(3, func() fate { return pass }), nil)
	defer p.Close()
	got := make(chan telemetry.Result, 1)
	payload := `[{"device_id":"a","timestamp":"2026-01-23T15:00:00Z","sensors":{"s":1}},{"device_id":"b","timestamp":"2026-01-23T15:00:00Z","sensors":{"s":1}},{"device_id":"c","timestamp":"2026-01-23T15:00:00Z","sensors":{"s":1}}]`
	for _, token := range []bool{true, false} {
		p.Publish(&telemetry.Publish{Payload: []byte(payload), Received: 1_769_180_400_000_000, QoS: 1, Token: token}, func(r telemetry.Result) { got <- r })
		select {
		case r := <-got:
			shards := map[telemetry.ShardID]bool{}
			for _, d := range []string{"a", "b", "c"} {
				shards[telemetry.ShardOf(d, 3)] = true
			}
			if token && len(r.Writes) != len(shards) || !token && r.Writes != nil {
				t.Errorf("token %v: %+v", token, r)
			}
			for _, w := range r.Writes {
				if !shards[w.Shard] || w.Index == 0 {
					t.Errorf("write %+v", w)
				}
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no result")
		}
	}
}
