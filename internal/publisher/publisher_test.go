package publisher

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/broker"
	"github.com/sluice-iot/sluice/pubsub"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// commits is the ingest path behind real brokers. decide gives the answer to the
// n-th publish; the zero result leaves it open.
type commits struct {
	mu     sync.Mutex
	got    []telemetry.Publish
	decide func(n int, p *telemetry.Publish) telemetry.Result
}

var (
	applied = telemetry.Result{Applied: 1}
	unknown = telemetry.Result{Unknown: 1}
)

func (c *commits) Publish(p *telemetry.Publish, done func(telemetry.Result)) {
	c.mu.Lock()
	kept := *p
	kept.Payload = bytes.Clone(p.Payload)
	c.got = append(c.got, kept)
	res := applied
	if c.decide != nil {
		res = c.decide(len(c.got)-1, p)
	}
	c.mu.Unlock()
	done(res)
}

func (c *commits) seen() []telemetry.Publish {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

func start(t *testing.T, in broker.Ingest, cfg broker.Config) *broker.Broker {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	hub, err := pubsub.Alone(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hub.Close() })
	b, err := broker.New(slog.New(slog.DiscardHandler), nil, cfg, in, hub)
	if err == nil {
		hub.Start(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func open(t *testing.T, cfg Config) *Publisher {
	t.Helper()
	if cfg.ClientID == "" {
		cfg.ClientID = "c1"
	}
	p, err := New(slog.New(slog.DiscardHandler), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// tally collects results by payload.
type tally struct {
	mu sync.Mutex
	by map[string][]Result
}

func (y *tally) publish(ctx context.Context, p *Publisher, payload string) error {
	return p.Publish(ctx, "devices/d1/telemetry", []byte(payload), func(r Result) {
		y.mu.Lock()
		defer y.mu.Unlock()
		if y.by == nil {
			y.by = map[string][]Result{}
		}
		y.by[payload] = append(y.by[payload], r)
	})
}

func (y *tally) of(payload string) Result {
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.by[payload]) != 1 {
		return Result{Err: fmt.Errorf("%d results for %s", len(y.by[payload]), payload)}
	}
	return y.by[payload][0]
}

func TestEachPublishIsAnsweredOnceInOrder(t *testing.T) {
	in := &commits{}
	b := start(t, in, broker.Config{})
	p := open(t, Config{Brokers: []string{b.Addr().String()}, Window: 100})
	ctx := soon(t)
	var y tally
	for i := range 2000 {
		if err := y.publish(ctx, p, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for i, got := range in.seen() {
		if string(got.Payload) != fmt.Sprint(i) || got.PacketID != uint16(i+1) || got.Dup || got.QoS != 1 || got.Client != "c1" {
			t.Fatalf("publish %d arrives as %+v", i, got)
		}
		if r := y.of(fmt.Sprint(i)); !r.OK() || r.Sends != 1 || r.Latency <= 0 {
			t.Fatalf("publish %d: %+v", i, r)
		}
	}
	if st := p.Stats(); st.Accepted != 2000 || st.Answered != 2000 || st.Resent != 0 || st.Connects != 1 || p.InFlight() != 0 {
		t.Fatalf("got %+v", st)
	}
}

// TestLostPublishesGoToTheNextBroker leaves a part unanswered and closes the
// broker: the same packet ids arrive at the other one, with DUP, in order.
func TestLostPublishesGoToTheNextBroker(t *testing.T) {
	first := &commits{decide: func(n int, _ *telemetry.Publish) telemetry.Result {
		if n < 30 {
			return applied
		}
		return unknown
	}}
	second := &commits{}
	a, b := start(t, first, broker.Config{}), start(t, second, broker.Config{})
	p := open(t, Config{Brokers: []string{a.Addr().String(), b.Addr().String()}})
	ctx := soon(t)
	var y tally
	for i := range 100 {
		if err := y.publish(ctx, p, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for len(first.seen()) < 100 || p.Stats().Answered < 30 {
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
		time.Sleep(time.Millisecond)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	got := second.seen()
	if len(got) != 70 {
		t.Fatalf("the second broker got %d publishes, want 70", len(got))
	}
	for i, g := range got {
		n := i + 30
		if string(g.Payload) != fmt.Sprint(n) || g.PacketID != uint16(n+1) || !g.Dup || g.Client != "c1" {
			t.Fatalf("resent %d arrives as %+v", n, g)
		}
		if r := y.of(fmt.Sprint(n)); !r.OK() || r.Sends != 2 {
			t.Fatalf("publish %d: %+v", n, r)
		}
	}
	if st := p.Stats(); st.Resent != 70 || st.Connects != 2 {
		t.Fatalf("got %+v", st)
	}
}

func TestPausedBrokerIsGivenUp(t *testing.T) {
	silent := silentBroker(t, nil)
	in := &commits{}
	b := start(t, in, broker.Config{})
	p := open(t, Config{Brokers: []string{silent, b.Addr().String()}, AckTimeout: 300 * time.Millisecond})
	ctx := soon(t)
	var y tally
	if err := y.publish(ctx, p, "x"); err != nil {
		t.Fatal(err)
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if r := y.of("x"); !r.OK() || r.Sends != 2 || r.Latency < 300*time.Millisecond {
		t.Fatalf("got %+v", r)
	}
}

func TestIdleConnectionIsPingedAndADeadOneNoticed(t *testing.T) {
	pings := make(chan struct{}, 100)
	silent := silentBroker(t, pings)
	p := open(t, Config{Brokers: []string{silent}, KeepAlive: 200 * time.Millisecond, AckTimeout: 200 * time.Millisecond})
	if err := p.Connected(soon(t)); err != nil {
		t.Fatal(err)
	}
	<-pings
	for p.Stats().Disconnect == 0 {
		time.Sleep(5 * time.Millisecond)
	}
}

// silentBroker accepts connections and answers nothing but CONNECT.
func silentBroker(t *testing.T, pings chan<- struct{}) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				for {
					pk, err := packets.ReadPacket(c)
					if err != nil {
						return
					}
					switch pk.Type {
					case packets.CONNECT:
						_, _ = packets.NewControlPacket(packets.CONNACK).WriteTo(c)
					case packets.PINGREQ:
						pings <- struct{}{}
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestQuotaIsTriedAgainAndOtherRefusalsAreFinal(t *testing.T) {
	in := &commits{decide: func(n int, p *telemetry.Publish) telemetry.Result {
		switch {
		case n == 0:
			return telemetry.Result{Refused: 1, Refusal: telemetry.RefusalQuota, Reason: "disk is nearly full"}
		case string(p.Payload) == "bad":
			return telemetry.Result{Quarantined: 1, Reason: "not JSON"}
		}
		return applied
	}}
	b := start(t, in, broker.Config{})
	p := open(t, Config{Brokers: []string{b.Addr().String()}, QuotaPause: 50 * time.Millisecond})
	ctx := soon(t)
	var y tally
	for _, s := range []string{"full", "bad", "good"} {
		if err := y.publish(ctx, p, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if r := y.of("full"); !r.OK() || r.Sends != 2 {
		t.Errorf("full: %+v", r)
	}
	if r := y.of("bad"); r.OK() || r.Reason != ReasonQuarantined || !strings.Contains(r.Text, "not JSON") {
		t.Errorf("bad: %+v", r)
	}
	if r := y.of("good"); !r.OK() {
		t.Errorf("good: %+v", r)
	}
	got := in.seen()
	if last := got[len(got)-1]; string(last.Payload) != "full" || last.Dup {
		t.Errorf("the second try arrives as %+v, want without DUP", last)
	}
	if st := p.Stats(); st.Quota != 1 || st.Resent != 0 {
		t.Errorf("got %+v", st)
	}
}

func TestReceiveMaximumOfTheBrokerIsKept(t *testing.T) {
	// A broker closes with 0x93 when it is not; then publishes would be resent.
	in := &commits{decide: func(int, *telemetry.Publish) telemetry.Result { return applied }}
	b := start(t, in, broker.Config{Window: 4})
	p := open(t, Config{Brokers: []string{b.Addr().String()}, Window: 200})
	ctx := soon(t)
	var y tally
	for i := range 1000 {
		if err := y.publish(ctx, p, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if st := p.Stats(); st.Resent != 0 || st.Connects != 1 {
		t.Fatalf("got %+v", st)
	}
}

func TestTooLargePublishEndsWithoutBeingSent(t *testing.T) {
	in := &commits{}
	b := start(t, in, broker.Config{PacketBytesMax: 4096, PayloadBytesMax: 2048})
	p := open(t, Config{Brokers: []string{b.Addr().String()}})
	ctx := soon(t)
	var y tally
	for _, s := range []string{"before", strings.Repeat("x", 5000), "after"} {
		if err := y.publish(ctx, p, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if r := y.of(strings.Repeat("x", 5000)); !errors.Is(r.Err, ErrTooLarge) || r.Sends != 0 {
		t.Fatalf("got %+v", r)
	}
	if !slices.EqualFunc(in.seen(), []string{"before", "after"}, func(p telemetry.Publish, s string) bool { return string(p.Payload) == s }) {
		t.Fatalf("the broker got %d publishes", len(in.seen()))
	}
}

func TestPacketIDsBeginWhereAskedAndSkipWhatIsUnderWay(t *testing.T) {
	hold := true
	in := &commits{}
	in.decide = func(n int, p *telemetry.Publish) telemetry.Result {
		if hold && p.PacketID == 65534 {
			hold = false
			return telemetry.Result{Refused: 1, Refusal: telemetry.RefusalQuota}
		}
		return applied
	}
	b := start(t, in, broker.Config{})
	p := open(t, Config{Brokers: []string{b.Addr().String()}, FirstPacketID: 65533, QuotaPause: 50 * time.Millisecond})
	ctx := soon(t)
	var y tally
	for i := range 5 {
		if err := y.publish(ctx, p, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	var ids []uint16
	for _, g := range in.seen() {
		ids = append(ids, g.PacketID)
	}
	if !slices.Equal(ids, []uint16{65533, 65534, 65535, 1, 2, 65534}) {
		t.Fatalf("packet ids %v", ids)
	}
}

func TestCloseEndsWhatHasNoAnswer(t *testing.T) {
	silent := silentBroker(t, nil)
	p := open(t, Config{Brokers: []string{silent}, Window: 2})
	ctx := soon(t)
	var y tally
	for _, s := range []string{"a", "b"} {
		if err := y.publish(ctx, p, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.TryPublish("devices/d1/telemetry", nil, nil); !errors.Is(err, ErrFull) {
		t.Fatalf("third publish in a window of two: %v", err)
	}
	waiting := make(chan error)
	go func() { waiting <- p.Publish(ctx, "devices/d1/telemetry", nil, func(Result) {}) }()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Errorf("a publish that waited: %v", err)
	}
	for _, s := range []string{"a", "b"} {
		if r := y.of(s); !errors.Is(r.Err, ErrClosed) {
			t.Errorf("%s: %+v", s, r)
		}
	}
	if err := p.Flush(ctx); err != nil && !errors.Is(err, ErrClosed) {
		t.Errorf("flush afterwards: %v", err)
	}
}

func TestNoBrokerIsAnErrorThatSaysWhy(t *testing.T) {
	p := open(t, Config{Brokers: []string{"127.0.0.1:1"}})
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := p.Connected(ctx); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("got %v", err)
	}
}

func TestConfigNamesEveryProblem(t *testing.T) {
	err := (&Config{Brokers: []string{"x"}, Window: 40_000, AckTimeout: -1, BufferBytes: -1}).Validate()
	for _, want := range []string{"broker", "client id", "window", "ack timeout", "buffer"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not name %s", err, want)
		}
	}
}

// TestPacketsAreThoseOfTheLibrary compares our encoding with paho's reader.
func TestPacketsAreThoseOfTheLibrary(t *testing.T) {
	for _, n := range []int{0, 1, 90, 100, 127, 128, 200, 16_300, 16_384, 70_000, 2_097_152} {
		it := &item{topic: "devices/d1/telemetry", payload: bytes.Repeat([]byte{'x'}, n), id: uint16(rand.IntN(65535) + 1), dup: n%2 == 0}
		var b bytes.Buffer
		w := bufio.NewWriter(&b)
		if err := writePublish(w, it); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if b.Len() != publishBytes(it) {
			t.Errorf("payload of %d: %d bytes, publishBytes says %d", n, b.Len(), publishBytes(it))
		}
		pk, err := packets.ReadPacket(&b)
		if err != nil {
			t.Fatalf("payload of %d: %v", n, err)
		}
		got, ok := pk.Content.(*packets.Publish)
		if !ok || got.Topic != it.topic || got.PacketID != it.id || got.QoS != 1 || got.Duplicate != it.dup || got.Retain || !bytes.Equal(got.Payload, it.payload) || b.Len() != 0 {
			t.Fatalf("payload of %d: got %+v", n, pk)
		}
	}
}
