package node

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

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
			g.pass(&e, func() { told = append(told, name) }, func() { dropped = append(dropped, name) })
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

// What 24 shards say of one model is one alert with the devices of all, told
// again when it has doubled, and once when the last of them is calm.
func TestWavesOfAllShardsAreOneAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		s := newSurges(func(kind api.EventKind, a *telemetry.Anomaly, change uint64) {
			told = append(told, fmt.Sprintf("%s %s %s %d", kind, a.ID, a.Shares, change))
		})
		part := func(id, devices int, tr anomaly.Transition) {
			a := telemetry.Anomaly{ID: fmt.Sprintf("%d-7-w0", id), Device: "model:m1", Opened: int64(100 - id), Shares: fmt.Sprintf("%d of 90 devices of the model", devices)}
			if tr == anomaly.Closed {
				a.Closed = 200
			}
			s.hear(&shard.Event{ID: a.ID, Shard: telemetry.ShardID(id), Transition: tr, Anomaly: a})
		}
		for id := range 24 {
			part(id, 20, anomaly.Opened)
		}
		time.Sleep(gatherFor + time.Second)
		synctest.Wait()
		for id := range 24 {
			part(id, 40, anomaly.Updated)
		}
		for id := range 24 {
			part(id, 41, anomaly.Closed)
		}
		part(3, 41, anomaly.Closed)
		want := []string{
			"opened 23-7-w0 480 of 2160 devices of the model 480",
			"changed 23-7-w0 960 of 2160 devices of the model 960",
			"closed 23-7-w0 984 of 2160 devices of the model 984",
		}
		if !slices.Equal(told, want) || len(s.now) != 0 {
			t.Errorf("told %q, want %q; %d go on", told, want, len(s.now))
		}
	})
}
