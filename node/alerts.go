package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/sluice-iot/sluice/alerts/webhook"
	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// AlertsConfig is who is told of anomalies besides the API and MQTT.
type AlertsConfig struct {
	Webhook WebhookConfig `yaml:"webhook"`
}

// WebhookConfig is a receiver of anomaly events.
type WebhookConfig struct {
	URL         string        `yaml:"url"`          // empty: none
	Secret      string        `yaml:"secret"`       // key of the signature, 16 bytes or more
	SeverityMin int           `yaml:"severity_min"` // anomalies below it are not sent
	Attempts    int           `yaml:"attempts"`     // until an event is a dead letter; 0: 8
	Timeout     time.Duration `yaml:"timeout"`      // of one attempt; 0: 10s
	DeadLetters string        `yaml:"dead_letters"` // file; empty: webhook.dead under node.data
}

func (c *WebhookConfig) config(data string) webhook.Config {
	out := webhook.Config{URL: c.URL, Secret: c.Secret, SeverityMin: float64(c.SeverityMin), Attempts: c.Attempts, Timeout: c.Timeout, DeadLetters: c.DeadLetters}
	if out.DeadLetters == "" {
		out.DeadLetters = filepath.Join(data, "webhook.dead")
	}
	return out
}

func (c *WebhookConfig) validate() error {
	if c.URL == "" {
		return nil
	}
	w := c.config(".")
	return w.Validate()
}

// Maintain implements api.Watch.
func (b *backend) Maintain(ctx context.Context, device string, until int64) error {
	return unavailable(b.node.router.Maintain(ctx, device, until))
}

// Normal implements api.Watch.
func (b *backend) Normal(ctx context.Context, id string) error {
	return unavailable(b.node.router.Normal(ctx, id))
}

// Target implements api.Watch.
func (b *backend) Target(ctx context.Context, perMonth float64) error {
	err := b.node.router.Target(ctx, perMonth)
	if shard.IsInvalid(err) {
		return fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	return unavailable(err)
}

// Range implements api.Watch.
func (b *backend) Range(ctx context.Context, r api.SensorRange, clear bool) error {
	err := b.node.router.Range(ctx, shard.Range{Sensor: r.Sensor, Min: float64(r.Min), Max: float64(r.Max)}, !clear)
	if shard.IsInvalid(err) {
		return fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	return unavailable(err)
}

// Settings implements api.Watch.
func (b *backend) Settings(ctx context.Context) (api.WatchSettings, error) {
	target, ranges, err := b.node.router.Settings(ctx)
	out := api.WatchSettings{AlarmsPerDeviceMonth: api.Float(target), Ranges: []api.SensorRange{}}
	for _, r := range ranges {
		out.Ranges = append(out.Ranges, api.SensorRange{Sensor: r.Sensor, Min: api.Float(r.Min), Max: api.Float(r.Max)})
	}
	return out, unavailable(err)
}

// hear hands anomaly events of all nodes to the streams of this one; what shards
// say of a model goes there as one alert.
func (n *node) hear(events []shard.Event) {
	for i := range events {
		if e := &events[i]; shard.IsWave(&e.Anomaly) {
			n.surges.hear(e)
		} else {
			n.hub.Publish(kindOf(e), e.Anomaly)
		}
	}
}

// tellSurge tells the streams of a wave: every node its own, and the leader of the
// shard that the model's name belongs to those of MQTT.
func (n *node) tellSurge(kind api.EventKind, a *telemetry.Anomaly) {
	n.hub.Publish(kind, *a)
	if !n.leadsDevice(a.Device) {
		return
	}
	shown := api.AnomalyOf(a)
	if err := n.announceMQTT(kind, &shown); err != nil {
		n.logger.Error("encode anomaly event", "err", err)
	}
}

// deliverSurge gives the alert of a wave to the webhook, if this node leads the
// shard that the model's name belongs to or the one that does is overdue.
func (n *node) deliverSurge(t *telling) bool {
	if !n.leadsDevice(t.anomaly.Device) && !t.overdue() {
		return false
	}
	shown, device, kind := api.AnomalyOf(&t.anomaly), t.anomaly.Device, t.kind
	done := func() { time.AfterFunc(0, func() { n.surgeDelivered(device, kind) }) } // not under the lock that this runs under
	if err := n.announceWebhook(kind, &shown, t.change, done); err != nil {
		n.logger.Error("encode anomaly event", "err", err)
	}
	return true
}

// surgeDelivered tells every node that nobody has to deliver this any more.
func (n *node) surgeDelivered(device string, kind api.EventKind) {
	n.surges.delivered(device, kind)
	n.feed.delivered(device, kind)
}

func (n *node) leadsDevice(device string) bool {
	return n.leader(telemetry.ShardOf(device, n.meta.State().Shards))
}

// leader reports whether this node takes itself to lead a shard.
func (n *node) leader(id telemetry.ShardID) bool {
	s, ok := n.host.Shard(id)
	return ok && s.Status(false).Role == "leader"
}

func kindOf(e *shard.Event) api.EventKind {
	switch e.Transition {
	case anomaly.Updated:
		return api.EventChanged
	case anomaly.Closed:
		return api.EventClosed
	}
	return api.EventOpened
}

// openAlerts prepares the webhook, if one is configured.
func (n *node) openAlerts() error {
	if n.cfg.Alerts.Webhook.URL == "" {
		return nil
	}
	s, err := webhook.New(n.logger, n.registry, n.cfg.Alerts.Webhook.config(n.cfg.Node.Data))
	if err != nil {
		return fmt.Errorf("alerts.webhook: %w", err)
	}
	n.webhook = s
	n.deliveries = newDeliveries(func(id telemetry.ShardID, index uint64) { n.host.Confirm(id, index) })
	n.feed.expect, n.surges.deliver = n.deliveries.expect, n.deliverSurge
	return nil
}

// mqttEvent is the payload of a message on anomalies/{device_id}.
type mqttEvent struct {
	Event   api.EventKind `json:"event"`
	Anomaly api.Anomaly   `json:"anomaly"`
}

// anomalyTopic begins the topics of anomalies; the device id follows.
const anomalyTopic = "anomalies/"

// announce tells the world outside of the events of shards that this node leads.
func (n *node) announce(events []shard.Event) {
	for i := range events {
		event := events[i] // it may wait, and the slice is given on
		e := &event
		done := func() {}
		if n.webhook != nil {
			done = func() { n.deliveries.done(e.Shard, e.Index) }
		}
		if shard.IsWave(&e.Anomaly) {
			n.surges.hold(e, done) // it is told with those of the other shards
			continue
		}
		n.gather.pass(e, func() { n.announceOne(e, true, done) }, func() { n.announceOne(e, n.leader(e.Shard), done) }, func() { n.surges.fold(e.Model, done) })
	}
}

// announceOne tells of an event, subscribers alone where the shard is led elsewhere by
// now: its leader tells the receiver, or has made the event a part of a wave.
func (n *node) announceOne(e *shard.Event, leads bool, done func()) {
	kind, a := kindOf(e), api.AnomalyOf(&e.Anomaly)
	var err error
	switch {
	case leads:
		err = n.announceWebhook(kind, &a, e.Index, done)
	case n.webhook != nil:
		n.deliveries.forget(e.Shard)
	}
	if !e.Repeat { // subscribers heard of it, or read the list
		err = errors.Join(err, n.announceMQTT(kind, &a))
	}
	if err != nil {
		n.logger.Error("encode anomaly event", "err", err)
	}
}

func (n *node) announceMQTT(kind api.EventKind, a *api.Anomaly) error {
	if n.broker.Load() == nil || !n.pubsub.Wanted() { // the broker comes last: whoever sees it sees the hub
		return nil
	}
	payload, err := json.Marshal(mqttEvent{kind, *a})
	if err != nil {
		return err
	}
	n.pubsub.Publish(&session.Message{Topic: anomalyTopic + a.DeviceID, Payload: payload, QoS: 1}, session.Key{}, func(err error) {
		if err != nil {
			n.logger.Warn("anomaly event not given to its subscribers, the lists have it", "device", a.DeviceID, "err", err)
		}
	})
	return nil
}

func (n *node) announceWebhook(kind api.EventKind, a *api.Anomaly, change uint64, done func()) error {
	if n.webhook == nil {
		return nil
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	n.webhook.Send(webhook.Event{Kind: string(kind), ID: a.ID, Change: change, Severity: float64(a.Severity), Grade: a.Grade, Anomaly: b, Done: done})
	return nil
}
