package broker

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/telemetry"
)

func TestTakeOverClosesTheOlderConnection(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		b := start(t, Config{}, m)
		old, _ := dial(t, b, v, "c1", connectOptions{})
		old.publish(pub{topic: topic1, qos: 1, id: 1})
		h := m.next(t)
		c, _ := dial(t, b, v, "c1", connectOptions{})
		if v == 5 {
			old.closed(0x8E)
		} else {
			old.closed(0)
		}
		h.apply() // of the old connection: nobody is told
		c.ping()
		c.publish(pub{topic: topic1, qos: 1, id: 1, dup: true})
		m.next(t).apply()
		c.expect(packets.Puback, 1)
		eventually(t, "one connection", func() bool { s := b.Stats(); return s.Connections == 1 && s.Sessions == 1 })
	})
}

func TestConcurrentTakeOversLeaveOneConnection(t *testing.T) {
	b := start(t, Config{}, newMemory())
	const n = 30
	done := make(chan struct{}, n)
	for range n {
		go func() {
			defer func() { done <- struct{}{} }()
			c := dialRaw(t, b)
			c.v = 4
			_, _ = c.Write(connectPacket(4, "same", connectOptions{})) // a connection may be replaced at any moment
			_, _ = c.tryRead(5 * time.Second)
		}()
	}
	for range n {
		<-done
	}
	eventually(t, "one connection", func() bool { s := b.Stats(); return s.Connections == 1 && s.Sessions == 1 })
	c, _ := dial(t, b, 4, "same", connectOptions{})
	c.subscribe("x", 0)
	c.publish(pub{topic: "x", payload: "here"})
	c.expect(packets.Publish, 0)
}

func TestPersistentSessionResumesInOrder(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		b := start(t, Config{}, newMemory())
		o := connectOptions{keep: true, props: []byte{packets.PropSessionExpiryInterval, 0, 0, 1, 0}}
		sub, ack := dial(t, b, v, "sub", o)
		if ack.SessionPresent {
			t.Fatal("session present at the first connect")
		}
		sub.subscribe("cmd/#", 2)
		c, _ := dial(t, b, v, "c1", connectOptions{})
		publish := func(from, to uint16) {
			for i := from; i <= to; i++ {
				c.publish(pub{topic: "cmd/x", payload: fmt.Sprint(i), qos: 1 + byte(i%2), id: i})
				if i%2 == 0 {
					c.expect(packets.Puback, i)
				} else {
					c.expect(packets.Pubrec, i)
					c.ack(packets.Pubrel, i)
					c.expect(packets.Pubcomp, i)
				}
			}
		}
		publish(1, 4)
		for i := range uint16(4) {
			sub.expect(packets.Publish, i+1)
		}
		sub.ack(packets.Pubrec, 1) // QoS 2 released, never completed
		sub.expect(packets.Pubrel, 1)
		sub.ack(packets.Puback, 2) // done
		sub.ping()
		sub.Close()
		eventually(t, "the subscriber is away", func() bool { return b.Stats().Connections == 1 })
		publish(5, 7)
		sub, ack = dial(t, b, v, "sub", o)
		if !ack.SessionPresent {
			t.Fatal("session not present")
		}
		sub.expect(packets.Pubrel, 1)
		for i := uint16(3); i <= 7; i++ {
			pk := sub.read()
			if pk.FixedHeader.Type != packets.Publish || string(pk.Payload) != fmt.Sprint(i) || pk.FixedHeader.Dup != (i <= 4) {
				t.Fatalf("got %s dup %v, want message %d", describe(pk), pk.FixedHeader.Dup, i)
			}
		}
		sub.ack(packets.Pubcomp, 1)
		sub.ping()
		clean, ack := dial(t, b, v, "sub", connectOptions{})
		if ack.SessionPresent {
			t.Fatal("session present after a clean start")
		}
		clean.quiet(20 * time.Millisecond)
		if n := b.Stats().Subscriptions; n != 0 {
			t.Fatalf("%d subscriptions left", n)
		}
	})
}

func TestQoS2StateOfThePublisherSurvivesReconnect(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	c, _ := dial(t, b, 4, "c1", connectOptions{keep: true})
	c.publish(pub{topic: topic1, qos: 2, id: 5})
	m.next(t).apply()
	c.expect(packets.Pubrec, 5)
	c.Close()
	c, ack := dial(t, b, 4, "c1", connectOptions{keep: true})
	if !ack.SessionPresent {
		t.Fatal("session not present")
	}
	c.publish(pub{topic: topic1, qos: 2, id: 5, dup: true})
	if h := m.next(t); !h.Dup {
		t.Fatal("the ingest path is not told that the publish may be a repeat")
	} else {
		h.decide(telemetry.Result{Duplicate: 1})
	}
	c.expect(packets.Pubrec, 5)
	c.ack(packets.Pubrel, 5)
	c.expect(packets.Pubcomp, 5)
}

func TestAMessageOfQoS2IsDeliveredOnceAcrossReconnects(t *testing.T) {
	b := start(t, Config{}, newMemory())
	sub, _ := dial(t, b, 4, "sub", connectOptions{})
	sub.subscribe("cmd", 2)
	c, _ := dial(t, b, 4, "c1", connectOptions{keep: true})
	c.publish(pub{topic: "cmd", payload: "one", qos: 2, id: 5})
	c.expect(packets.Pubrec, 5)
	c.Close()
	c, _ = dial(t, b, 4, "c1", connectOptions{keep: true})
	c.publish(pub{topic: "cmd", payload: "one", qos: 2, id: 5, dup: true})
	c.expect(packets.Pubrec, 5)
	c.ack(packets.Pubrel, 5)
	c.expect(packets.Pubcomp, 5)
	for _, want := range []string{"one", "two"} {
		pk := sub.read()
		if string(pk.Payload) != want {
			t.Fatalf("got %s, want %s", describe(pk), want)
		}
		sub.ack(packets.Pubrec, pk.PacketID)
		sub.expect(packets.Pubrel, pk.PacketID)
		sub.ack(packets.Pubcomp, pk.PacketID)
		if want == "one" {
			c.publish(pub{topic: "cmd", payload: "two", qos: 2, id: 5})
			c.expect(packets.Pubrec, 5)
		}
	}
}

func TestTelemetryOfQoS2ReachesSubscribersOnceAcrossReconnects(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	sub, _ := dial(t, b, 4, "sub", connectOptions{})
	sub.subscribe("devices/+/telemetry", 0)
	kept, _ := dial(t, b, 4, "kept", connectOptions{keep: true})
	kept.subscribe("devices/+/telemetry", 1)
	p := pub{topic: topic1, payload: `{"n":1}`, qos: 2, id: 5}
	c, _ := dial(t, b, 4, "c1", connectOptions{keep: true})
	c.publish(p)
	m.next(t).apply()
	c.expect(packets.Pubrec, 5)
	c.Close()
	c, _ = dial(t, b, 4, "c1", connectOptions{keep: true})
	p.dup = true
	c.publish(p) // PUBREC did not arrive: the log finds a repeat
	m.next(t).decide(telemetry.Result{Duplicate: 1})
	c.expect(packets.Pubrec, 5)
	c.ack(packets.Pubrel, 5)
	c.expect(packets.Pubcomp, 5)
	c.publish(pub{topic: topic1, payload: `{"n":2}`, qos: 2, id: 5}) // the id is free again
	m.next(t).apply()
	c.expect(packets.Pubrec, 5)
	for _, want := range []string{`{"n":1}`, `{"n":2}`} {
		sub.expectPayload(want)
		kept.ack(packets.Puback, kept.expectPayload(want).PacketID)
	}
	sub.ping() // and nothing more
	kept.ping()
}

func TestSessionExpires(t *testing.T) {
	t.Parallel()
	b := start(t, Config{SessionExpiryMax: 3 * time.Second}, newMemory())
	c, _ := dial(t, b, 4, "c1", connectOptions{keep: true})
	c.subscribe("cmd", 1)
	c.Close()
	eventually(t, "the client is away", func() bool { return b.Stats().Connections == 0 })
	c, ack := dial(t, b, 4, "c1", connectOptions{keep: true})
	if !ack.SessionPresent {
		t.Fatal("the session was not kept")
	}
	c.Close()
	time.Sleep(4 * time.Second) // longer than it lives
	if _, ack := dial(t, b, 4, "c1", connectOptions{keep: true}); ack.SessionPresent {
		t.Fatal("an expired session is present")
	}
}

func TestQueueOfAnAbsentSubscriberIsBounded(t *testing.T) {
	b := start(t, Config{QueueMax: 3}, newMemory())
	o := connectOptions{keep: true}
	sub, _ := dial(t, b, 4, "sub", o)
	sub.subscribe("cmd", 1)
	sub.Close()
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	for i := range uint16(5) {
		c.publish(pub{topic: "cmd", payload: fmt.Sprint(i), qos: 1, id: i + 1})
		c.expect(packets.Puback, i+1)
	}
	sub, _ = dial(t, b, 4, "sub", o)
	for i := range 3 {
		if pk := sub.read(); string(pk.Payload) != fmt.Sprint(i) {
			t.Fatalf("got %s, want %d", describe(pk), i)
		}
	}
	sub.ping()
	sub.quiet(20 * time.Millisecond)
}

func TestWillIsSentOnlyWithoutGoodbye(t *testing.T) {
	versions(t, func(t *testing.T, v byte) {
		m := newMemory()
		b := start(t, Config{}, m)
		sub, _ := dial(t, b, v, "sub", connectOptions{})
		sub.subscribe("status/#", 1)
		will := &packets.Packet{TopicName: "status/c1", Payload: []byte("gone"), FixedHeader: packets.FixedHeader{Qos: 1}}
		c, _ := dial(t, b, v, "c1", connectOptions{will: will})
		c.send([]byte{0xE0, 0})
		c.closed(0)
		sub.quiet(20 * time.Millisecond)
		c, _ = dial(t, b, v, "c1", connectOptions{will: will})
		c.Close()
		if pk := sub.read(); pk.TopicName != "status/c1" || string(pk.Payload) != "gone" {
			t.Fatalf("got %s", describe(pk))
		}
		will.TopicName = "devices/c1/telemetry"
		c, _ = dial(t, b, v, "c1", connectOptions{will: will})
		c.Close()
		if h := m.next(t); h.Device != "c1" || string(h.Payload) != "gone" || h.Client != "c1" || h.PacketID != 0 {
			t.Fatalf("ingest got %+v", h.Publish)
		} else {
			h.apply()
		}
	})
}

func TestWillDelayIsCancelledByReconnect(t *testing.T) {
	t.Parallel()
	b := start(t, Config{}, newMemory())
	sub, _ := dial(t, b, 5, "sub", connectOptions{})
	sub.subscribe("status", 0)
	o := connectOptions{keep: true, props: []byte{packets.PropSessionExpiryInterval, 0, 0, 0, 60},
		will: &packets.Packet{TopicName: "status", Payload: []byte("gone")}, willProps: []byte{packets.PropWillDelayInterval, 0, 0, 0, 1}}
	c, _ := dial(t, b, 5, "c1", o)
	c.Close()
	eventually(t, "the client is away", func() bool { return b.Stats().Connections == 1 })
	c, _ = dial(t, b, 5, "c1", o)
	sub.quiet(1200 * time.Millisecond)
	c.Close()
	left := time.Now()
	if pk := sub.read(); string(pk.Payload) != "gone" || time.Since(left) < 900*time.Millisecond {
		t.Fatalf("got %s after %v, want the will after 1s", describe(pk), time.Since(left))
	}
}

func TestCloseWaitsForEverything(t *testing.T) {
	m := newMemory()
	b := start(t, Config{}, m)
	c, _ := dial(t, b, 5, "c1", connectOptions{})
	c.publish(pub{topic: topic1, qos: 1, id: 1})
	h := m.next(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c.closed(0x8B)
	h.apply()
	if err := b.Start(context.Background()); err == nil {
		t.Fatal("a closed broker starts")
	}
}

func TestCloseDoesNotWaitForADeafClient(t *testing.T) {
	t.Parallel()
	b := start(t, Config{OutBytesMax: 16 << 20, WriteTimeout: time.Hour}, newMemory())
	sub, _ := dial(t, b, 4, "sub", connectOptions{})
	sub.subscribe("x", 0)
	c, _ := dial(t, b, 4, "c1", connectOptions{})
	for i := range uint16(30) { // more than the sockets hold
		c.publish(pub{topic: "x", payload: strings.Repeat("x", 500_000), qos: 1, id: i + 1})
		c.expect(packets.Puback, i+1)
	}
	began := time.Now()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Fatalf("Close took %v", d)
	}
}

func TestCloseInterruptsAuthentication(t *testing.T) {
	waiting := make(chan struct{})
	b := start(t, Config{Authenticator: slowAuth(waiting), ConnectTimeout: time.Hour}, newMemory())
	c := dialRaw(t, b)
	c.send(connectPacket(4, "c1", connectOptions{}))
	<-waiting
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

type slowAuth chan struct{}

func (a slowAuth) Authenticate(ctx context.Context, _ Credentials) (Identity, error) {
	close(a)
	<-ctx.Done()
	return Identity{}, ctx.Err()
}
