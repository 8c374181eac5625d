package node

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/alerts/webhook"
	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// The first events of a device with peers wait; what becomes part of a wave is not
// told, the rest is, in order; devices without peers do not wait.
func TestEventsOfDevicesWithPeersWaitForAWave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGather()
		var told, dropped []string
		pass := func(id, model, wave string, tr anomaly.Transition) {
			e := shard.Event{ID: id, Model: model, Transition: tr, Anomaly: telemetry.Anomaly{ID: id, Wave: wave}}
			name := id + " " + tr.String()
			tell := func() { told = append(told, name) }
			g.pass(&e, tell, tell, func() { dropped = append(dropped, name) })
		}
		pass("alone", "", "", anomaly.Opened)
		pass("first", "m", "", anomaly.Opened)
		pass("other", "m", "", anomaly.Opened)
		pass("other", "m", "", anomaly.Updated)
		pass("first", "m", "w1", anomaly.Closed)
		if !slices.Equal(told, []string{"alone opened"}) || !slices.Equal(dropped, []string{"first opened", "first closed"}) {
			t.Fatalf("told %q, dropped %q", told, dropped)
		}
		time.Sleep(gatherFor + time.Second)
		synctest.Wait()
		pass("other", "m", "", anomaly.Closed)
		if !slices.Equal(told[1:], []string{"other opened", "other updated", "other closed"}) || len(dropped) != 2 {
			t.Errorf("told %q, dropped %q", told, dropped)
		}
	})
}

// What a wave took along is confirmed with the alert and not before: the next leader
// hears of the opening and of the end, or of neither.
func TestWhatAWaveTookAlongIsConfirmedWithItsAlert(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	sender, err := webhook.New(logger, prometheus.NewRegistry(), webhook.Config{
		URL: "http://127.0.0.1:9/", Secret: "a secret of sixteen bytes", DeadLetters: filepath.Join(t.TempDir(), "dead"),
	})
	if err != nil {
		t.Fatal(err)
	}
	confirmed := uint64(0)
	n := &node{
		logger: logger, webhook: sender, gather: newGather(),
		surges:     newSurges(func(api.EventKind, *telemetry.Anomaly) {}, func(*telling) bool { return true }),
		deliveries: newDeliveries(func(_ telemetry.ShardID, index uint64) { confirmed = index }),
	}
	event := func(index uint64, tr anomaly.Transition, a telemetry.Anomaly) shard.Event {
		return shard.Event{ID: a.ID, Shard: 1, Index: index, Transition: tr, Model: "m1", Anomaly: a}
	}
	wave := part(1, 20, anomaly.Opened)
	wave.Index = 14
	for _, batch := range [][]shard.Event{
		{event(13, anomaly.Opened, telemetry.Anomaly{ID: "1-13-0", Device: "d"})},
		{*wave, event(14, anomaly.Closed, telemetry.Anomaly{ID: "1-13-0", Device: "d", Wave: wave.ID})},
	} {
		n.deliveries.expect(batch)
		n.announce(batch)
		n.hear(slices.DeleteFunc(slices.Clone(batch), func(e shard.Event) bool { return !shard.IsWave(&e.Anomaly) }))
	}
	if confirmed != 0 {
		t.Fatalf("confirmed up to %d before the alert is delivered", confirmed)
	}
	n.surges.delivered(shard.WaveOf("m1"), api.EventOpened)
	if confirmed != 14 {
		t.Errorf("confirmed up to %d with the alert, want 14", confirmed)
	}
}
