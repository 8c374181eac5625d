package bench

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

func TestHelloOfACrowdIsAConnect(t *testing.T) {
	for _, m := range newCrowd("meter", 1, true, 2).members {
		for _, durable := range []bool{true, false} {
			m.durable = durable
			b := m.hello()
			pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect, Remaining: len(b) - 2}}
			if b[0] != 0x10 || int(b[1]) != len(b)-2 {
				t.Fatalf("head %x of %d bytes", b[:2], len(b))
			}
			if err := pk.ConnectDecode(b[2:]); err != nil {
				t.Fatal(err)
			}
			if code := pk.ConnectValidate(); code != packets.CodeSuccess {
				t.Fatal(code)
			}
			c := pk.Connect
			if pk.ProtocolVersion != 5 || c.ClientIdentifier != "meter-000000" || c.Keepalive != crowdKeepAlive || c.Clean == durable || c.WillFlag != durable {
				t.Errorf("durable %v: %+v", durable, c)
			}
			if durable && (c.WillTopic != "fleet/meter-000000" || c.WillQos != 1 || c.WillProperties.WillDelayInterval != crowdWillDelay || pk.Properties.SessionExpiryInterval != crowdExpiry) {
				t.Errorf("%+v, %+v", c, pk.Properties)
			}
		}
	}
}

// answering is a broker that answers every packet with the same bytes.
func answering(t *testing.T, answer []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				for buf := make([]byte, 1000); ; {
					if _, err := nc.Read(buf); err != nil {
						return
					}
					if _, err := nc.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func TestMembersKnowARefusalFromASuccess(t *testing.T) {
	m := newCrowd("meter", 1, true, 2).members[0]
	if _, err := m.connect(t.Context(), answering(t, []byte{0x20, 3, 1, 0, 0})); err != nil || !m.present {
		t.Fatalf("%v, session present %v", err, m.present)
	}
	m.leave()
	var r refusal
	if _, err := m.connect(t.Context(), answering(t, []byte{0x20, 3, 0, 0x89, 0})); !errors.As(err, &r) || r != 0x89 {
		t.Errorf("got %v, want a refusal with 0x89", err)
	}
	if _, err := m.connect(t.Context(), answering(t, []byte{0x30, 3, 0, 0, 0})); err == nil || errors.As(err, &r) {
		t.Errorf("got %v, want an error that is no refusal", err)
	}
}

func TestEachReachesAllMembersAndStopsAtAnError(t *testing.T) {
	all := newCrowd("meter", 1000, false, 2)
	seen := make(chan string, 2000)
	hist, _, err := all.timed(t.Context(), func(m *member) (time.Duration, error) {
		seen <- m.id
		return time.Millisecond, nil
	})
	if err != nil || len(seen) != 1000 || hist.TotalCount() != 1000 {
		t.Errorf("%d of 1000 seen, %d counted, %v", len(seen), hist.TotalCount(), err)
	}
	if err := all.each(t.Context(), func(*member) error { return errors.New("no") }); err == nil || !strings.Contains(err.Error(), "meter-0") {
		t.Errorf("got %v, want the errors with the clients' names", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := all.each(ctx, func(*member) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRateOfAGatewayIsWholeWhenAcksKeepUpAgain(t *testing.T) {
	g := &gateway{cfg: &GatewayConfig{Rate: 100}}
	killed := time.Now()
	for d := -gatewayWatch; d < gatewayWatch; d += 10 * time.Millisecond {
		at := d
		switch {
		case d == 3*time.Second: // late for a reason of its own
			at += 300 * time.Millisecond
		case d >= 0: // nothing for 410 ms, then twice the rate until the backlog is gone
			at = max(d, 410*time.Millisecond+d/2)
		}
		g.sent, g.acked = append(g.sent, killed.Add(d)), append(g.acked, killed.Add(at))
	}
	k := g.judge(killed)
	if k.Before != 0 || k.Full != 715 || k.Gap != 410 || k.Late != 100 { // what was sent at 610 ms is the last that waits for more than 100
		t.Errorf("before the kill %v ms, whole after %v ms, gap %v ms, late from %v ms on; want 0, 715, 410, 100", k.Before, k.Full, k.Gap, k.Late)
	}
}

func TestArraysOfAGatewayNameEveryDevice(t *testing.T) {
	g := &gateway{name: "g1", cfg: &GatewayConfig{Devices: 3}}
	payload := g.appendPayload(nil, 7)
	for _, id := range []string{`"g1-0"`, `"g1-1"`, `"g1-2"`} {
		if !bytes.Contains(payload, []byte(id)) {
			t.Errorf("%s is not in %s", id, payload)
		}
	}
	b := appendGatewayPublish(nil, 9, g.name, payload)
	pk := packets.Packet{ProtocolVersion: 4, FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}}
	if err := pk.PublishDecode(b[3:]); err != nil || pk.TopicName != "gateways/g1/telemetry" || pk.PacketID != 9 || !bytes.Equal(pk.Payload, payload) {
		t.Errorf("%v: %s %d", err, pk.TopicName, pk.PacketID)
	}
}
