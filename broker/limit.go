package broker

import (
	"fmt"
	"hash/maphash"
	"math"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"golang.org/x/time/rate"
)

// Limits are bounds on what clients may ask per second. Zero is the default of
// Connects, and no limit for the others.
type Limits struct {
	// Connects is how many CONNECTs per second are let in, default 5,000, fewer while
	// the machine has not the time for more. The others wait their turn, sources in
	// turn and first come first served within one, and after ConnectWait are told to try
	// again (0x89, 3.1.1: 3), so that a fleet that comes back all at once does not
	// starve those who are in.
	Connects float64
	// ConnectWait is the longest turn that is waited for, default 2 s; with Connects it
	// bounds the queue.
	ConnectWait time.Duration

	// Identity is how many publishes per second the connections of one identity may
	// send together; nameless clients count by their client id. Commands and alarms are
	// counted by themselves, as many again: telemetry does not use up what an alarm needs.
	Identity float64
	// Device is how many publishes per second may be about one device, whoever sends
	// them.
	Device float64
}

const (
	burstSeconds    = 2 // what a limit allows at once, in seconds of its rate
	limitWaitMax    = 5 * time.Second
	limitShards     = 64
	limitsPerShard  = 4096 // of those who published lately; beyond it, any of them is forgotten
	connectBurstMin = 100
)

// limiters are token buckets by name. One that is forgotten begins anew with a full
// bucket: a flood of names weakens the limits, it does not take memory.
type limiters struct {
	rate  rate.Limit
	burst int
	seed  maphash.Seed
	max   int // per shard

	shards [limitShards]struct {
		mu     sync.Mutex
		byName map[string]*rate.Limiter
	}
}

// newLimiters returns nil, which limits nobody, for a rate of 0.
func newLimiters(perSecond float64) *limiters {
	if perSecond == 0 {
		return nil
	}
	return &limiters{rate: rate.Limit(perSecond), burst: max(1, int(math.Ceil(perSecond*burstSeconds))), seed: maphash.MakeSeed(), max: limitsPerShard}
}

// take asks for one publish: the time until it would be allowed, 0 when it is and has
// been counted. wait counts it in any case, to be sent after that time.
func (l *limiters) take(name string, now time.Time, wait bool) time.Duration {
	if l == nil {
		return 0
	}
	r := l.of(name).ReserveN(now, 1)
	d := r.DelayFrom(now)
	if d > 0 && !wait {
		r.CancelAt(now)
	}
	return d
}

func (l *limiters) of(name string) *rate.Limiter {
	s := &l.shards[maphash.String(l.seed, name)%limitShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.byName[name]; ok {
		return b
	}
	if s.byName == nil {
		s.byName = map[string]*rate.Limiter{}
	}
	if len(s.byName) >= l.max {
		for other := range s.byName {
			delete(s.byName, other)
			break
		}
	}
	b := rate.NewLimiter(l.rate, l.burst)
	s.byName[name] = b
	return b
}

// throttle applies the limits of identity and device. An MQTT 5 client is told what it
// must not send yet (0x97, with the time to wait); a 3.1.1 client cannot be told, so
// it is not read for so long. What is refused was not sent to anybody.
func (c *conn) throttle(p *publish) {
	if c.b.identities == nil && c.b.devices == nil {
		return
	}
	wait := c.version < 5
	who := c.identity.Name
	if who == "" {
		who = c.client
	}
	limit := c.b.identities
	if p.urgent() {
		limit = c.b.alarms
	}
	d, what := limit.take(who, p.at, wait), "client"
	if p.Device != "" && (d == 0 || wait) {
		if other := c.b.devices.take(p.Device, p.at, wait); other > d {
			d, what = other, "device"
		}
	}
	if d == 0 {
		return
	}
	c.b.metrics.refused.WithLabelValues("throttled", what).Inc()
	if wait {
		c.pause(min(d, limitWaitMax))
		return
	}
	p.refuse(packets.Code{Code: packets.ErrQuotaExceeded.Code, Reason: fmt.Sprintf("too many publishes of this %s, try again in %d ms", what, d.Milliseconds()+1)})
}

// pause keeps the reader for d, or until the connection ends.
func (c *conn) pause(d time.Duration) {
	over := false
	timer := time.AfterFunc(d, func() {
		c.mu.Lock()
		over = true
		c.changed.Broadcast()
		c.mu.Unlock()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closing && !over {
		c.changed.Wait()
	}
}
