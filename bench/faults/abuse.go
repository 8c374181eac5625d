package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/devcluster"
)

// Hostile clients of one node, beside honest ones: connections that never say
// who they are, packets that promise 256 MiB, a client that subscribes to
// everything, and bytes that are no MQTT. What they may cost is bounded.

const (
	abuseLong     = 12 * time.Second
	abuseMost     = 90 * time.Second // on a machine too busy to make so many connections
	abuseBaseline = 6 * time.Second
	halfOpens     = 2000
	// halfOpenStep is how many connections are made in a row: the flood must not be
	// one of the machine that makes it.
	halfOpenStep   = 100
	halfOpenAgain  = 40 // once there were as many as wanted
	floodPause     = 200 * time.Millisecond
	hugeHeaders    = 8
	hugeBytes      = 256<<20 - 1
	subscriptions  = 10_000
	perSubscribe   = 100  // filters in one packet
	subscribedMost = 1000 // of one client, see docs/operations.md
	// abuseMemoryMax is what a node may take in all while it is abused: a broker
	// that believes what headers promise takes 2 GiB.
	abuseMemoryMax = 512 << 20
	// honestFloor keeps a baseline of an idle machine from making noise a failure:
	// the abuse is made on the machine that serves.
	honestFloor = 100 * time.Millisecond
	honestTimes = 2
	abuseDial   = 5 * time.Second
	// abuseCut is when a connection that has sent garbage must be over: the broker
	// gives a CONNECT 5 s.
	abuseCut     = 30 * time.Second
	garbagePause = 20 * time.Millisecond
)

// abuser is one campaign of hostile clients against one node.
type abuser struct {
	addr    string
	done    sync.WaitGroup
	opened  atomic.Int64 // connections
	granted atomic.Int64 // subscriptions
	refused atomic.Int64
	cut     atomic.Int64 // connections that the broker has ended

	mu  sync.Mutex
	err error // what the broker should not have done
}

func abuse(ctx context.Context, r *Run) error {
	victim, err := r.busiest(ctx)
	if err != nil {
		return err
	}
	n := r.Cluster.Nodes()[victim]
	sleep(ctx, abuseBaseline) // more than what is known from before every fault
	before := r.fleet.probes.latency(time.Now().Add(-abuseBaseline), time.Now(), 0.99)
	r.strikes()
	began := time.Now()
	campaign, stop := context.WithTimeout(ctx, abuseMost)
	defer stop()
	a := &abuser{addr: n.MQTT}
	a.start(campaign)
	peak, err := a.peakMemory(campaign, n)
	stop()
	ended := time.Now()
	a.done.Wait()
	under := r.fleet.probes.latency(began, ended, 0.99)
	sleep(ctx, abuseBaseline)
	before = max(before, r.fleet.probes.latency(time.Now().Add(-abuseBaseline), time.Now(), 0.99)) // the machine has other moods too
	r.note = fmt.Sprintf("p99 of honest clients %v, without %v; at most %d MiB; %d connections made, %d of them cut, %d of %d subscriptions granted",
		under.Round(time.Millisecond), before.Round(time.Millisecond), peak>>20, a.opened.Load(), a.cut.Load(), a.granted.Load(), a.granted.Load()+a.refused.Load())
	return errors.Join(err, a.verdict(peak), r.honest(before, under))
}

// verdict is what is wrong whatever the machine is like.
func (a *abuser) verdict(peak int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	errs := []error{a.err}
	if peak > abuseMemoryMax {
		errs = append(errs, fmt.Errorf("the abused node took %d MiB, %d are allowed", peak>>20, abuseMemoryMax>>20))
	}
	if g, n := a.granted.Load(), a.granted.Load()+a.refused.Load(); g > subscribedMost || n < subscriptions {
		errs = append(errs, fmt.Errorf("%d of %d subscriptions were granted to one client, %d are allowed of %d", g, n, subscribedMost, subscriptions))
	}
	if a.opened.Load() < halfOpens {
		errs = append(errs, fmt.Errorf("only %d connections could be made, %d were wanted", a.opened.Load(), halfOpens))
	}
	return errors.Join(errs...)
}

// honest compares the latencies of honest clients; it depends on the machine, so
// that only a run for its figures judges it.
func (r *Run) honest(before, under time.Duration) error {
	if limit := honestTimes * max(before, honestFloor); r.cfg.JudgeLatency && under > limit {
		return fmt.Errorf("p99 of honest clients is %v under abuse, %v without: %v is allowed", under, before, limit)
	}
	return nil
}

func (a *abuser) start(ctx context.Context) {
	a.done.Go(func() { a.flood(ctx) })
	for i := range hugeHeaders {
		a.done.Go(func() { a.promise(ctx, i%2 == 0) })
	}
	a.done.Go(func() { a.subscribe(ctx) })
	a.done.Go(func() { a.garbage(ctx) })
}

func (a *abuser) blame(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = fmt.Errorf(format, args...)
	}
}

func (a *abuser) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: abuseDial}
	c, err := d.DialContext(ctx, "tcp", a.addr)
	if err == nil {
		a.opened.Add(1)
	}
	return c, err
}

// flood keeps connections open that say nothing, and makes new ones for those
// that the broker gives up.
func (a *abuser) flood(ctx context.Context) {
	var open atomic.Int64
	var readers sync.WaitGroup
	defer readers.Wait()
	for ; ctx.Err() == nil; sleep(ctx, floodPause) {
		step := halfOpenStep
		if a.opened.Load() > halfOpens {
			step = halfOpenAgain
		}
		for range min(step, halfOpens-int(open.Load())) {
			c, err := a.dial(ctx)
			if err != nil {
				break // the node is busy with the others: that is the point
			}
			open.Add(1)
			readers.Go(func() {
				defer open.Add(-1)
				a.awaitEnd(ctx, c)
			})
		}
	}
}

// awaitEnd waits until the broker ends a connection, or the campaign does.
func (a *abuser) awaitEnd(ctx context.Context, c net.Conn) {
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_, _ = io.Copy(io.Discard, c) // how it ends does not matter
	if ctx.Err() == nil {
		a.cut.Add(1)
	}
	_ = c.Close() // hostile clients lose nothing
}

// promise announces packets of 256 MiB, as the first one or behind a CONNECT.
func (a *abuser) promise(ctx context.Context, first bool) {
	for i := 0; ctx.Err() == nil; i++ {
		c, err := a.dial(ctx)
		if err == nil {
			header := append([]byte{0x10}, remaining(hugeBytes)...)
			if !first {
				header = append(connectPacket(fmt.Sprintf("huge-%d-%p", i, c)), append([]byte{0x32}, remaining(hugeBytes)...)...)
			}
			if _, err := c.Write(append(header, make([]byte, 4096)...)); err == nil {
				a.awaitEnd(ctx, c)
			}
			_ = c.Close() // hostile clients lose nothing
		}
		sleep(ctx, 100*time.Millisecond)
	}
}

// subscribe asks for as many filters as one client can.
func (a *abuser) subscribe(ctx context.Context) {
	c, err := a.dial(ctx)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer func() { _ = c.Close() }() // its session goes with it
	if _, err := c.Write(connectPacket("greedy")); err != nil {
		return
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		return
	}
	for i := 0; i < subscriptions/perSubscribe; i++ {
		if _, err := c.Write(subscribePacket(uint16(i+1), i*perSubscribe)); err != nil {
			break
		}
		codes, err := readSuback(c)
		if err != nil {
			if ctx.Err() == nil {
				a.blame("subscription %d of a greedy client: no answer: %w", i*perSubscribe, err)
			}
			break
		}
		for _, code := range codes {
			if code >= 0x80 {
				a.refused.Add(1)
			} else {
				a.granted.Add(1)
			}
		}
	}
	<-ctx.Done()
}

// garbage sends the corpus again and again; every connection must end.
func (a *abuser) garbage(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		bad := malformed[i%len(malformed)]
		c, err := a.dial(ctx)
		if err != nil {
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		b := bad.bytes
		if bad.connected {
			b = append(connectPacket(fmt.Sprintf("garbage-%d", i)), b...)
		}
		a.done.Go(func() { a.mustEnd(c, b) })
		sleep(ctx, garbagePause)
	}
}

// mustEnd sends garbage; the broker has to end the connection, not we.
func (a *abuser) mustEnd(c net.Conn, garbage []byte) {
	defer func() { _ = c.Close() }() // hostile clients lose nothing
	err := c.SetDeadline(time.Now().Add(abuseCut))
	if err == nil {
		_, err = c.Write(garbage)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, c)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		a.blame("a connection that has sent %q is still open after %v", garbage, abuseCut)
		return
	}
	a.cut.Add(1)
}

// complete reports whether all that was planned has been tried.
func (a *abuser) complete() bool {
	return a.opened.Load() >= halfOpens && a.granted.Load()+a.refused.Load() >= subscriptions
}

// peakMemory is the most that a node's process holds during the campaign.
func (a *abuser) peakMemory(ctx context.Context, n *devcluster.Node) (most int64, err error) {
	for end := time.Now().Add(abuseLong); ctx.Err() == nil && (time.Now().Before(end) || !a.complete()); sleep(ctx, 100*time.Millisecond) {
		b, err := residentBytes(n.PID)
		if err != nil {
			return most, fmt.Errorf("%s under abuse: %w", n.ID, err)
		}
		most = max(most, b)
	}
	return most, nil
}

// residentBytes reads how much memory a process has.
func residentBytes(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0, fmt.Errorf("process %d has no memory: it has ended", pid)
	}
	kib, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	return kib << 10, nil
}

// remaining is the variable length of a packet.
func remaining(n int) []byte {
	var b []byte
	for {
		d := byte(n & 0x7f)
		if n >>= 7; n == 0 {
			return append(b, d)
		}
		b = append(b, d|0x80)
	}
}

func mqttString(b []byte, s string) []byte {
	return append(append(b, byte(len(s)>>8), byte(len(s))), s...)
}

func mqttPacket(first byte, body []byte) []byte {
	return append(append([]byte{first}, remaining(len(body))...), body...)
}

// connectPacket is an honest CONNECT of MQTT 3.1.1 with a clean session.
func connectPacket(client string) []byte {
	return mqttPacket(0x10, mqttString(append(mqttString(nil, "MQTT"), 4, 2, 0, 0), client))
}

func subscribePacket(id uint16, from int) []byte {
	b := []byte{byte(id >> 8), byte(id)}
	for i := range perSubscribe {
		b = append(mqttString(b, fmt.Sprintf("abuse/+/%d/#", from+i)), 1)
	}
	return mqttPacket(0x82, b)
}

// readSuback reads the codes of the next SUBACK.
func readSuback(r io.Reader) ([]byte, error) {
	var b [2]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, err
	}
	if b[0] != 0x90 || b[1] < 2 || b[1] > 127 {
		return nil, fmt.Errorf("got a packet % x, want a SUBACK", b)
	}
	rest := make([]byte, b[1])
	if _, err := io.ReadFull(r, rest); err != nil {
		return nil, err
	}
	return rest[2:], nil
}

// malformed is what no client may send: each ends its connection.
var malformed = []struct {
	connected bool // behind a CONNECT
	bytes     []byte
}{
	{false, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
	{false, []byte{0x16, 3, 1, 0, 200, 1, 0, 0, 196}},                              // TLS
	{false, []byte{0, 0, 0, 0, 0, 0, 0, 0}},                                        // type 0
	{false, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},                            // length of five bytes
	{false, []byte{0x10, 0xff, 0xff, 0xff, 0xff, 0x7f}},                            // the same in a CONNECT
	{false, []byte{0x10, 0}},                                                       // empty CONNECT
	{false, []byte{0x10, 10, 0, 4, 'M', 'Q', 'T', 'X', 4, 2, 0, 0}},                // another protocol
	{false, []byte{0x10, 12, 0, 4, 'M', 'Q', 'T', 'T', 4, 3, 0, 0, 0, 0}},          // reserved flag
	{false, []byte{0x10, 14, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0xff, 0xff, 1}}, // client id longer than the packet
	{false, []byte{0x30, 3, 0, 1, 'a'}},                                            // PUBLISH first
	{false, []byte{0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 0, 0xff, 0xff, 1}}, // properties without an end
	{true, []byte{0x36, 4, 0, 1, 'a', 0, 1}},                                       // QoS 3
	{true, []byte{0x30, 2, 0, 0}},                                                  // empty topic
	{true, []byte{0x30, 4, 0, 9, 'a', 'b'}},                                        // topic longer than the packet
	{true, []byte{0x30, 5, 0, 3, 'a', '/', '#'}},                                   // wildcard
	{true, []byte{0x30, 4, 0, 2, 0xc3, 0x28}},                                      // no UTF-8
	{true, []byte{0x32, 5, 0, 1, 'a', 0, 0}},                                       // packet id 0
	{true, []byte{0x80, 6, 0, 1, 0, 1, 'a', 0}},                                    // SUBSCRIBE with wrong flags
	{true, []byte{0x82, 2, 0, 1}},                                                  // nothing subscribed
	{true, []byte{0x82, 6, 0, 1, 0, 1, 'a', 7}},                                    // QoS 7
	{true, []byte{0xa2, 2, 0, 1}},                                                  // nothing unsubscribed
	{true, []byte{0x60, 2, 0, 1}},                                                  // PUBREL with wrong flags
	{true, []byte{0xf0, 0}},                                                        // AUTH in 3.1.1
	{true, []byte{0x10, 13, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 1, 'x'}},      // a second CONNECT
	{true, []byte{0x32, 0xff, 0xff, 0xff, 0xff, 0x7f}},                             // length of five bytes
}
