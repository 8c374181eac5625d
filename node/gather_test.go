package node

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-iot/sluice/anomaly"
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
