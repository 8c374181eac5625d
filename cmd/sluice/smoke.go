package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/devcluster"
)

type smokeCmd struct {
	Data string `default:"sluice-data" type:"path" help:"Directory of the local cluster."`
}

// smokeMax bounds the test of one node.
const smokeMax = 15 * time.Second

// Run implements kong: it publishes through each node of the local cluster and
// reads back through the next one.
func (c *smokeCmd) Run(ctx context.Context) error {
	nodes, err := devcluster.Load(c.Data)
	if err != nil {
		return err
	}
	for i, n := range nodes {
		next := nodes[(i+1)%len(nodes)]
		took, err := smoke(ctx, n, next)
		if err != nil {
			return fmt.Errorf("publish on %s, read on %s: %w", n.ID, next.ID, err)
		}
		fmt.Printf("published on %s (mqtt://%s), read back on %s (http://%s): ok, acknowledged after %v\n", n.ID, n.MQTT, next.ID, next.HTTP, took.Round(100*time.Microsecond))
	}
	return nil
}

func smoke(ctx context.Context, n, next devcluster.NodeInfo) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, smokeMax)
	defer cancel()
	device, at, value := "smoke-"+n.ID, time.Now().UTC().Truncate(time.Microsecond), 21.52
	payload := fmt.Sprintf(`{"timestamp":%q,"sensors":{"temperature":%v}}`, at.Format(time.RFC3339Nano), value)
	took, err := publishOnce(ctx, n.MQTT, device, payload)
	if err != nil {
		return 0, err
	}
	cl, err := client.New(client.Config{URL: (&url.URL{Scheme: "http", Host: next.HTTP}).String()})
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	for r, err := range cl.Readings(ctx, client.ReadingsQuery{Device: device, From: at}) {
		if err != nil {
			return 0, err
		}
		if int64(r.Time) == at.UnixMicro() && r.Sensor == "temperature" && float64(r.Value) == value {
			return took, nil
		}
	}
	return 0, errors.New("the acknowledged reading is not there")
}

// publishOnce publishes one message with QoS 1 and waits for its PUBACK.
func publishOnce(ctx context.Context, addr, device, payload string) (time.Duration, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	c := paho.NewClient(paho.ClientConfig{Conn: conn})
	if _, err := c.Connect(ctx, &paho.Connect{ClientID: device, CleanStart: true, KeepAlive: 30}); err != nil {
		return 0, errors.Join(fmt.Errorf("connect: %w", err), conn.Close())
	}
	defer func() { _ = c.Disconnect(&paho.Disconnect{}) }() // the answer is what counts
	start := time.Now()
	if _, err := c.Publish(ctx, &paho.Publish{QoS: 1, Topic: "devices/" + device + "/telemetry", Payload: []byte(payload)}); err != nil {
		return 0, fmt.Errorf("publish: %w", err)
	}
	return time.Since(start), nil
}
