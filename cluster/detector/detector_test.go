package detector_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/cluster/detector"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// door is a prober whose peers have real addresses on loopback.
type door struct {
	addr string

	mu     sync.Mutex
	probed []string
}

func (d *door) Probe(peer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.probed = append(d.probed, peer)
}

func (d *door) Resolve(string) (string, error) { return d.addr, nil }

func open(t *testing.T, p detector.Prober) (*detector.Detector, <-chan detector.Event) {
	t.Helper()
	d, err := detector.New(slog.New(slog.DiscardHandler), nil, detector.DefaultConfig(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	events := make(chan detector.Event, 16)
	d.Subscribe(func(e detector.Event) { events <- e })
	return d, events
}

func next(t *testing.T, events <-chan detector.Event) detector.Event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
		return detector.Event{}
	}
}

func TestResetOfADeadProcessIsEnough(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &door{addr: l.Addr().String()}
	_ = l.Close() // nobody listens any more
	d, events := open(t, p)
	start := time.Now()
	d.Observe("n1.00000001", detector.Reset)
	e := next(t, events)
	if !e.Down || e.Peer != "n1.00000001" || e.First != detector.Reset || e.Second != detector.Refused {
		t.Fatalf("got %+v", e)
	}
	t.Logf("down after %v", time.Since(start).Round(time.Microsecond))
	if !d.Down("n1.00000001") || d.Down("n2.00000001") {
		t.Error("Down does not say what the event said")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.probed) == 0 {
		t.Error("gossip was not asked for its opinion")
	}
}

func TestResetOfALivingProcessWaitsForGossip(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, events := open(t, &door{addr: l.Addr().String()})
	d.Observe("n1.00000001", detector.Reset)
	c, err := l.Accept() // the knock
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	select {
	case e := <-events:
		t.Fatalf("a living process is reported %+v", e)
	default:
	}
	d.Observe("n1.00000001", detector.Suspected)
	if e := next(t, events); !e.Down || e.Second != detector.Suspected {
		t.Fatalf("got %+v", e)
	}
	d.Observe("n1.00000001", detector.Connected)
	if e := next(t, events); e.Down {
		t.Fatalf("got %+v", e)
	}
}

func TestObserveAfterCloseDoesNothing(t *testing.T) {
	d, _ := open(t, &door{addr: "127.0.0.1:1"})
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for range 5000 { // more than the queue holds
		d.Observe("n1.00000001", detector.Reset)
	}
}

func TestConfigIsCheckedAsAWhole(t *testing.T) {
	if err := detector.DefaultConfig().Validate(); err != nil {
		t.Fatal(err)
	}
	bad := detector.Config{Window: 1, Tick: 0, Slack: 2, PeersMax: 0}
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	if n := len(err.(interface{ Unwrap() []error }).Unwrap()); n != 3 {
		t.Errorf("%d problems reported: %v", n, err)
	}
}

// TestAQuietMachineIsAskedWhetherItIsThere: a kernel that answers, by a refusal or
// for a process that stands still, is there; one that does not is gone with the word
// of gossip, without anybody waiting for silence.
func TestAQuietMachineIsAskedWhetherItIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		dial func(ctx context.Context) error
		want detector.Signal // with Suspected; Connected is nothing
	}{
		"nothing answers":   {func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, detector.Unreachable},
		"no route":          {func(context.Context) error { return syscall.EHOSTUNREACH }, detector.Unreachable},
		"nobody listens":    {func(context.Context) error { return syscall.ECONNREFUSED }, detector.Refused},
		"it stands still":   {func(context.Context) error { return nil }, detector.Connected},
		"half of them lost": {lostAfter(2), detector.Connected},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := detector.DefaultConfig()
				cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
					if err := c.dial(ctx); err != nil {
						return nil, err
					}
					here, there := net.Pipe()
					_ = there.Close()
					return here, nil
				}
				d, err := detector.New(slog.New(slog.DiscardHandler), nil, cfg, &door{addr: "10.0.0.1:1"})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = d.Close() }()
				var events []detector.Event
				d.Subscribe(func(e detector.Event) { events = append(events, e) })
				began := time.Now()
				d.Observe("n1.00000001", detector.Quiet)
				d.Observe("n1.00000001", detector.Suspected)
				for len(events) == 0 && time.Since(began) < time.Second {
					time.Sleep(10 * time.Millisecond)
					synctest.Wait()
				}
				switch {
				case c.want == detector.Connected && len(events) > 0:
					t.Errorf("got %+v", events)
				case c.want != detector.Connected && (len(events) != 1 || !events[0].Down || events[0].First != c.want):
					t.Errorf("got %+v, want it down by %v", events, c.want)
				case c.want == detector.Unreachable && time.Since(began) > 450*time.Millisecond:
					t.Errorf("down after %v", time.Since(began))
				}
			})
		})
	}
}

// TestAProcessThatAcceptsNothingIsThere: the kernel of a process that is paused, or
// too busy to accept, makes the connection all the same.
func TestAProcessThatAcceptsNothingIsThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // and no Accept
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := detector.DefaultConfig()
	answered := make(chan error, 16)
	cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		answered <- err
		return c, err
	}
	d, err := detector.New(slog.New(slog.DiscardHandler), nil, cfg, &door{addr: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	for try := 0; ; try++ { // a machine that is busy may be too late to ask
		d.Observe("n1.00000001", detector.Quiet)
		select {
		case err := <-answered:
			if err == nil {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
				if d.Down("n1.00000001") {
					t.Error("it is held for gone")
				}
				return
			}
		case <-time.After(time.Second):
		}
		if try == 60 {
			t.Fatal("no connect was answered")
		}
	}
}

// lostAfter answers the first n connects.
func lostAfter(n int32) func(ctx context.Context) error {
	var asked atomic.Int32
	return func(ctx context.Context) error {
		if asked.Add(1) <= n {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
}
