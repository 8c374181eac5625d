package broker

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/sluice-iot/sluice/telemetry"
)

// delayedMemory commits after a moment, as the log does.
func delayedMemory() *memory {
	m := newMemory()
	m.auto = func(_ telemetry.Publish, done func(telemetry.Result)) {
		time.AfterFunc(2*time.Millisecond, func() { done(telemetry.Result{Applied: 1}) })
	}
	return m
}

func pahoClient(t *testing.T, b *Broker, id string, got func(*paho.Publish)) *paho.Client {
	t.Helper()
	nc, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := paho.NewClient(paho.ClientConfig{Conn: nc, ClientID: id,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			if got != nil {
				got(p.Packet)
			}
			return true, nil
		}}})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	ack, err := c.Connect(ctx, &paho.Connect{ClientID: id, CleanStart: true, KeepAlive: 30})
	if err != nil {
		t.Fatal(err)
	}
	if ack.Properties.ReceiveMaximum == nil || *ack.Properties.ReceiveMaximum != uint16(b.cfg.Window) {
		t.Fatalf("receive maximum %v, want %d", ack.Properties.ReceiveMaximum, b.cfg.Window)
	}
	t.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) }) // the broker may be gone already
	return c
}

func TestPahoPublishesAndSubscribes(t *testing.T) {
	m := delayedMemory()
	b := start(t, Config{}, m)
	seen := make(chan string, 1000)
	sub := pahoClient(t, b, "sub", func(p *paho.Publish) { seen <- p.Topic })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := sub.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "devices/+/telemetry", QoS: 2}}}); err != nil {
		t.Fatal(err)
	}
	c := pahoClient(t, b, "c1", nil)
	const n = 300
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, err := c.Publish(ctx, &paho.Publish{Topic: fmt.Sprintf("devices/d%d/telemetry", i), QoS: byte(i % 3), Payload: []byte("{}")})
			if err != nil || r != nil && r.ReasonCode != 0 {
				t.Errorf("publish %d: %v %v", i, r, err)
			}
		})
	}
	wg.Wait()
	topics := map[string]int{}
	for range n {
		select {
		case topic := <-seen:
			topics[topic]++
		case <-ctx.Done():
			t.Fatalf("%d of %d messages delivered", len(topics), n)
		}
	}
	if len(topics) != n || m.count() != n {
		t.Fatalf("%d topics delivered, %d publishes ingested, want %d", len(topics), m.count(), n)
	}
}

func TestPahoSeesReasons(t *testing.T) {
	m := newMemory()
	m.auto = func(_ telemetry.Publish, done func(telemetry.Result)) {
		done(telemetry.Result{Quarantined: 1, Reason: "not an object"})
	}
	b := start(t, Config{}, m)
	c := pahoClient(t, b, "c1", nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for qos := byte(1); qos <= 2; qos++ {
		r, err := c.Publish(ctx, &paho.Publish{Topic: topic1, QoS: qos, Payload: []byte("{")})
		if r == nil || r.ReasonCode != 0x99 || (err == nil) != (qos == 2) || // paho reports PUBREC in the response only
			qos == 1 && r.Properties.ReasonString != "not an object" {
			t.Fatalf("QoS %d: got %+v, %v", qos, r, err)
		}
	}
}

func mosquitto(t *testing.T, b *Broker, name string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(name + " is not installed (Debian: apt-get install mosquitto-clients)")
	}
	addr := b.Addr().(*net.TCPAddr)
	return exec.Command(name, append([]string{"-h", addr.IP.String(), "-p", fmt.Sprint(addr.Port)}, args...)...)
}

func TestMosquittoPublishesAndSubscribes(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"mqttv31", "mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			m := delayedMemory()
			b := start(t, Config{}, m)
			sub := mosquitto(t, b, "mosquitto_sub", "-V", version, "-i", "sub", "-q", "2", "-t", "devices/#", "-C", "9", "-W", "20", "-v")
			var out bytes.Buffer
			sub.Stdout = &out
			if err := sub.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the subscriber is there", func() bool { return b.Stats().Subscriptions == 1 })
			for qos := range 3 {
				cmd := mosquitto(t, b, "mosquitto_pub", "-V", version, "-i", "pub", "-q", fmt.Sprint(qos), "-t", topic1, "-l")
				cmd.Stdin = strings.NewReader("{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n")
				if text, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("QoS %d: %v: %s", qos, err, text)
				}
			}
			if err := sub.Wait(); err != nil {
				t.Fatalf("mosquitto_sub: %v: %s", err, out.String())
			}
			if got, want := out.String(), strings.Repeat(topic1+" {\"n\":1}\n"+topic1+" {\"n\":2}\n"+topic1+" {\"n\":3}\n", 3); got != want {
				t.Fatalf("got\n%swant\n%s", got, want)
			}
			if m.count() != 9 {
				t.Fatalf("ingest got %d publishes, want 9", m.count())
			}
		})
	}
}
