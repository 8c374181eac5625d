package ingest

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// plant is a cluster that works off rate bytes per second and takes base for a commit
// when there is no queue. As much telemetry comes as may.
type plant struct {
	pace *pace
	now  time.Time
	rate float64
	base time.Duration
}

// run lets time pass and returns what a commit takes then.
func (p *plant) run(d time.Duration) (took time.Duration) {
	const blocks = 20 // in a step
	for end := p.now.Add(d); p.now.Before(end); {
		flight := float64(p.pace.allowance())
		took = max(p.base, time.Duration(flight/p.rate*float64(time.Second)))
		done := flight / took.Seconds() * paceEvery.Seconds()
		for i := range blocks {
			p.now = p.now.Add(paceEvery / blocks)
			p.pace.done.Add(int64(done / blocks))
			one := took
			if i == 0 {
				one = p.base // some block always finds an empty way
			}
			p.pace.answered(p.now, 10, one)
		}
	}
	return took
}

func newPlant(target time.Duration, rate float64, base time.Duration) *plant {
	return &plant{newPace(target, 24), time.Unix(1e9, 0), rate, base}
}

func TestAllowanceFallsWhenCommitsGetSlowAndRisesAgain(t *testing.T) {
	const target = 50 * time.Millisecond
	p := newPlant(target, 40e6, 2*time.Millisecond)
	check := func(what string, took time.Duration) {
		t.Helper()
		if took < target/2 || took > target*3/2 {
			t.Errorf("%s: a commit takes %v with %d bytes in flight, want about %v", what, took, p.pace.allowance(), target)
		}
	}
	check("at first", p.run(5*time.Second))
	fast := p.pace.allowance()
	p.rate /= 4
	check("at a quarter of the speed", p.run(2*time.Second))
	slow := p.pace.allowance()
	if slow > fast/2 {
		t.Errorf("%d bytes may be in flight at a quarter of the speed, %d before", slow, fast)
	}
	p.rate *= 4
	check("at full speed again", p.run(5*time.Second))
	if again := p.pace.allowance(); again < fast/2 {
		t.Errorf("%d bytes may be in flight at full speed again, %d before", again, fast)
	}
	p.rate = 100
	p.run(time.Minute)
	if least := p.pace.allowance(); least != p.pace.floor {
		t.Errorf("%d bytes may be in flight when hardly anything is committed, want %d", least, p.pace.floor)
	}
}

// TestAllowanceFillsASlowWay: where a commit takes long without any queue, less in flight
// would make it no faster.
func TestAllowanceFillsASlowWay(t *testing.T) {
	p := newPlant(50*time.Millisecond, 40e6, 200*time.Millisecond)
	p.run(10 * time.Second)
	if got, want := float64(p.pace.allowance()), p.rate*p.base.Seconds(); got < want {
		t.Errorf("%.0f bytes may be in flight, which leaves the way empty: want at least %.0f", got, want)
	}
	// It gets slow while the node runs, with a queue that is never empty.
	p = newPlant(50*time.Millisecond, 40e6, 2*time.Millisecond)
	p.run(10 * time.Second)
	p.base = 200 * time.Millisecond
	p.run(30 * time.Second)
	if got, want := float64(p.pace.allowance()), p.rate*p.base.Seconds(); got < want {
		t.Errorf("%.0f bytes may be in flight since the way is slow, want at least %.0f", got, want)
	}
}

func TestNoTargetIsNoBound(t *testing.T) {
	p := newPace(0, 24)
	for range 1000 {
		p.answered(time.Now(), 1, time.Hour)
	}
	if n := p.allowance(); n < 1<<40 {
		t.Errorf("%d bytes may be in flight without a target", n)
	}
}

// deafShard is a Router with one shard that does not answer until it is told to.
type deafShard struct {
	*network
	shard  telemetry.ShardID
	answer chan struct{}
}

func (d *deafShard) Propose(id telemetry.ShardID, b []byte, done func(shard.Result, error)) {
	if id != d.shard {
		d.network.Propose(id, b, done)
		return
	}
	d.running.Go(func() {
		<-d.answer
		d.network.Propose(id, b, done)
	})
}

// TestAStalledShardDoesNotUseUpTheAllowance: what waits for it, what comes later, and
// an array that only in part is for it, is all counted apart until it is finished.
func TestAStalledShardDoesNotUseUpTheAllowance(t *testing.T) {
	n := &deafShard{network: newNetwork(3, func() fate { return pass }), shard: telemetry.ShardOf("d1", 3), answer: make(chan struct{})}
	p := open(t, n, func(c *Config) { c.Target = 50 * time.Millisecond })
	elsewhere := "d2"
	for i := 3; telemetry.ShardOf(elsewhere, 3) == n.shard; i++ {
		elsewhere = fmt.Sprintf("d%d", i)
	}
	finished := make(chan telemetry.Result, 10)
	publish := func(device, payload string) int64 {
		pub := &telemetry.Publish{Device: device, Topic: "t", Payload: []byte(payload), Received: 1, QoS: 1}
		p.Publish(pub, func(r telemetry.Result) { finished <- r })
		return pub.Cost()
	}
	waits := publish("d1", `{"timestamp":1767225600000000,"sensors":{"t":1}}`)
	later := time.Now().Add(time.Minute)
	for _, q := range p.queues {
		q.watch(later)
	}
	waits += publish("d1", `{"timestamp":1767225600001000,"sensors":{"t":2}}`)
	waits += publish("", `[{"device_id":"d1","timestamp":1767225600003000,"sensors":{"t":3}},{"device_id":"`+elsewhere+`","timestamp":1767225600003000,"sensors":{"t":3}}]`)
	publish(elsewhere, `{"timestamp":1767225600004000,"sensors":{"t":4}}`)
	if r := <-finished; r.Applied != 1 {
		t.Fatalf("publish to another shard: %+v", r)
	}
	if got := p.pace.held.Load(); got != waits {
		t.Errorf("%d bytes wait for the stalled shard, want %d", got, waits)
	}
	if limit := p.pace.limit.Load(); p.Allowance() < limit+waits {
		t.Errorf("%d bytes may be in flight, want %d and the %d that wait", p.Allowance(), limit, waits)
	}
	close(n.answer)
	for range 3 {
		if r := <-finished; r.Applied == 0 || r.Unknown > 0 {
			t.Errorf("publish to the stalled shard: %+v", r)
		}
	}
	if got := p.pace.held.Load(); got != 0 {
		t.Errorf("%d bytes are still held when nothing is in flight", got)
	}
}
