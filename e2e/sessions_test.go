package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/sluice-iot/sluice/devcluster"
)

// The clients of one conversation are on different nodes, and nodes die.

// patience is generous: the machine may be busy, and elections are part of it.
const patience = 3 * time.Minute

// mqttClient records what it receives.
type mqttClient struct {
	*paho.Client
	t    *testing.T
	conn net.Conn
	ack  *paho.Connack

	mu  sync.Mutex
	got []string
}

type mqttOptions struct {
	id    string
	clean bool
	brief bool // the session ends with the connection
	will  *paho.WillMessage
	delay uint32
}

// dialMQTT connects with a session that lives for five minutes; a node that is busy
// electing is asked again.
func dialMQTT(t *testing.T, n *devcluster.Node, o mqttOptions) *mqttClient {
	t.Helper()
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		c, err := tryMQTT(t, n, o)
		if err == nil {
			return c
		}
		last = err
	}
	t.Fatalf("connect %s to %s: %v", o.id, n.ID, last)
	return nil
}

func tryMQTT(t *testing.T, n *devcluster.Node, o mqttOptions) (*mqttClient, error) {
	nc, err := net.Dial("tcp", n.MQTT)
	if err != nil {
		return nil, err
	}
	c := &mqttClient{t: t, conn: nc}
	c.Client = paho.NewClient(paho.ClientConfig{Conn: nc, ClientID: o.id, OnClientError: func(error) {}, OnServerDisconnect: func(*paho.Disconnect) {},
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.got = append(c.got, string(p.Packet.Payload))
			return true, nil
		}}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	expiry := uint32(300)
	if o.brief {
		expiry = 0
	}
	connect := &paho.Connect{ClientID: o.id, CleanStart: o.clean, KeepAlive: 60, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
		WillMessage: o.will}
	if o.will != nil {
		connect.WillProperties = &paho.WillProperties{WillDelayInterval: &o.delay}
	}
	if c.ack, err = c.Connect(ctx, connect); err != nil {
		_ = nc.Close()
		if c.ack != nil {
			return nil, fmt.Errorf("refused with 0x%x: %w", c.ack.ReasonCode, err)
		}
		return nil, err
	}
	t.Cleanup(func() { _ = nc.Close() })
	return c, nil
}

func (c *mqttClient) subscribe(filter string, qos byte) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if _, err := c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}}); err != nil {
		c.t.Fatalf("subscribe %s: %v", filter, err)
	}
}

func (c *mqttClient) received() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// send publishes with QoS 1 until it is acknowledged, on the nodes in turn, as a
// client does whose connection breaks.
func send(t *testing.T, nodes []*devcluster.Node, topic, payload string, retain bool) {
	t.Helper()
	var last error
	for i := 0; i < 200; i++ {
		n := nodes[i%len(nodes)]
		if last = sendOnce(t, n, topic, payload, retain); last == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("publish %s on %s: %v", payload, topic, last)
}

func sendOnce(t *testing.T, n *devcluster.Node, topic, payload string, retain bool) error {
	c, err := tryMQTT(t, n, mqttOptions{id: fmt.Sprintf("sender-%s-%d", n.ID, time.Now().UnixNano()), clean: true})
	if err != nil {
		return err
	}
	defer func() { _ = c.Disconnect(&paho.Disconnect{}) }() // what counts is the acknowledgement
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
	defer cancel()
	_, err = c.Publish(ctx, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload), Retain: retain})
	return err
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// inOrder wants every payload of want at least once, and their first occurrences in
// order: a message of QoS 1 may come again.
func inOrder(t *testing.T, got, want []string) {
	t.Helper()
	var first []string
	for _, g := range got {
		if !slices.Contains(first, g) {
			first = append(first, g)
		}
	}
	if !slices.Equal(first, want) {
		t.Fatalf("got %v, want %v", first, want)
	}
}

func TestCommandsReachADeviceOnWhicheverNodeInOrder(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	device := mqttOptions{id: "valve-1"}
	dev := dialMQTT(t, nodes[0], device)
	dev.subscribe("devices/valve-1/command", 1)
	dev.subscribe("fleet/+/command", 1) // of other shards
	var want []string
	command := func(from []*devcluster.Node) {
		text := fmt.Sprintf("command %d", len(want))
		topic := "devices/valve-1/command"
		want = append(want, text)
		send(t, from, topic, text, false)
	}
	for i := range 6 {
		command(nodes[i%3 : i%3+1])
	}
	await(t, "the device has its commands", func() bool { return len(dev.received()) >= 6 })
	_ = dev.conn.Close()
	for i := range 6 {
		command(nodes[i%3 : i%3+1]) // it is away
	}
	next := dialMQTT(t, nodes[2], device)
	if !next.ack.SessionPresent {
		t.Fatal("the session is not present on another node")
	}
	await(t, "the device has what waited", func() bool { return len(next.received()) >= 6 })
	third := dialMQTT(t, nodes[1], device) // while it is connected
	for range 3 {
		command(nodes[:1])
	}
	await(t, "the device has the last", func() bool { return slices.Contains(third.received(), want[len(want)-1]) })
	inOrder(t, slices.Concat(dev.received(), next.received(), third.received()), want)
	send(t, nodes, "fleet/a/command", "wild", false)
	await(t, "a message of another shard arrives", func() bool { return slices.Contains(third.received(), "wild") })
}

func TestTheNodeOfADeviceDiesAndNoCommandIsLost(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	device := mqttOptions{id: "valve-2"}
	dev := dialMQTT(t, nodes[0], device)
	dev.subscribe("devices/valve-2/command", 1)
	var want []string
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			text := fmt.Sprint(i)
			send(t, nodes[1:], "devices/valve-2/command", text, false)
			want = append(want, text)
		}
	})
	await(t, "some commands have arrived", func() bool { return len(dev.received()) > 5 })
	if err := nodes[0].Kill(); err != nil {
		t.Fatal(err)
	}
	next := dialMQTT(t, nodes[1], device)
	if !next.ack.SessionPresent {
		t.Error("the session died with the node")
	}
	time.Sleep(time.Second)
	close(stop)
	wg.Wait()
	await(t, "the last command has arrived", func() bool { return slices.Contains(next.received(), want[len(want)-1]) })
	inOrder(t, slices.Concat(dev.received(), next.received()), want)
}

func TestWillsAndRetainedMessagesSurviveTheirNode(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	watcher := dialMQTT(t, nodes[1], mqttOptions{id: "watcher", clean: true})
	watcher.subscribe("status/+", 1)
	will := func(id string) *paho.WillMessage {
		return &paho.WillMessage{Topic: "status/" + id, QoS: 1, Retain: true, Payload: []byte(id + " is gone")}
	}
	dialMQTT(t, nodes[0], mqttOptions{id: "dies", will: will("dies")})
	moves := mqttOptions{id: "moves", will: will("moves"), delay: 60}
	dialMQTT(t, nodes[0], moves)
	send(t, nodes[:1], "state/lamp", "on", true)
	if err := nodes[0].Kill(); err != nil {
		t.Fatal(err)
	}
	dialMQTT(t, nodes[2], moves)
	await(t, "the will of the client that did not come back is sent", func() bool { return slices.Contains(watcher.received(), "dies is gone") })
	if slices.Contains(watcher.received(), "moves is gone") {
		t.Error("the will of a client that is connected elsewhere was sent")
	}
	late := dialMQTT(t, nodes[2], mqttOptions{id: "late", clean: true})
	late.subscribe("#", 1)
	await(t, "what was retained is there", func() bool {
		return slices.Contains(late.received(), "on") && slices.Contains(late.received(), "dies is gone")
	})
}

func TestSharedSubscribersOfAllNodesDivideTheTelemetry(t *testing.T) {
	c := start(t)
	nodes := c.Nodes()
	var members []*mqttClient
	for i, n := range nodes {
		m := dialMQTT(t, n, mqttOptions{id: fmt.Sprintf("worker-%d", i), clean: i > 0})
		m.subscribe("$share/workers/devices/+/telemetry", 1)
		members = append(members, m)
	}
	all := dialMQTT(t, nodes[1], mqttOptions{id: "all", clean: true})
	all.subscribe("devices/+/telemetry", 0)
	const many = 60
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			send(t, nodes[i%3:i%3+1], fmt.Sprintf("devices/meter-%d/telemetry", i), fmt.Sprintf(`{"sensors":{"n":%d}}`, i), false)
		})
	}
	wg.Wait()
	var got []string
	await(t, "every message has found a worker, and the one who wants all has all", func() bool {
		got = nil
		for _, m := range members {
			got = append(got, m.received()...)
		}
		return len(got) >= many && len(all.received()) >= many
	})
	slices.Sort(got)
	if n := len(slices.Compact(got)); n != many || len(all.received()) != many {
		t.Fatalf("%d different messages at the workers, %d at the one who wants all, want %d", n, len(all.received()), many)
	}
}
