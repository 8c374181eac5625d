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

// surgeNode is one node's view of the waves; what it gives to its sender is taken
// while it leads.
type surgeNode struct {
	*surges
	leads           bool
	told, delivered []string
	confirmed       int
}

func newSurgeNode(leads bool) *surgeNode {
	n := &surgeNode{leads: leads}
	n.surges = newSurges(func(kind api.EventKind, a *telemetry.Anomaly) {
		n.told = append(n.told, fmt.Sprintf("%s %s %s", kind, a.ID, a.Shares))
	}, func(t *telling) bool {
		if n.leads || t.overdue() {
			n.delivered = append(n.delivered, fmt.Sprintf("%s %s %d", t.kind, t.anomaly.ID, t.change))
		}
		return n.leads || t.overdue()
	})
	return n
}

func part(id, devices int, tr anomaly.Transition) *shard.Event {
	a := telemetry.Anomaly{ID: fmt.Sprintf("%d-7-w0", id), Device: "model:m1", Opened: int64(100 - id), Shares: fmt.Sprintf("%d of 90 devices of the model", devices)}
	if tr == anomaly.Closed {
		a.Closed = 200
	}
	return &shard.Event{ID: a.ID, Shard: telemetry.ShardID(id), Transition: tr, Anomaly: a}
}

// What 24 shards say of one model is one alert with the devices of all, told
// again when it has doubled, and once when the last of them is calm.
func TestWavesOfAllShardsAreOneAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSurgeNode(true)
		for id := range 24 {
			s.hear(part(id, 20, anomaly.Opened))
		}
		time.Sleep(gatherFor + time.Second)
		synctest.Wait()
		for id := range 24 {
			s.hear(part(id, 40, anomaly.Updated))
		}
		for id := range 24 {
			s.hear(part(id, 41, anomaly.Closed))
		}
		s.hear(part(3, 41, anomaly.Closed))
		want := []string{
			"opened 23-7-w0 480 of 2160 devices of the model",
			"changed 23-7-w0 960 of 2160 devices of the model",
			"closed 23-7-w0 984 of 2160 devices of the model",
		}
		if !slices.Equal(s.told, want) || len(s.now) != 0 {
			t.Errorf("told %q, want %q; %d go on", s.told, want, len(s.now))
		}
		if want := []string{"opened 23-7-w0 480", "changed 23-7-w0 960", "closed 23-7-w0 984"}; !slices.Equal(s.delivered, want) {
			t.Errorf("delivered %q, want %q", s.delivered, want)
		}
		for _, kind := range []api.EventKind{api.EventOpened, api.EventChanged, api.EventClosed} {
			s.surges.delivered("model:m1", kind)
		}
		if len(s.owed) != 0 {
			t.Errorf("%d models are owed alerts", len(s.owed))
		}
	})
}

// The node that had an alert to deliver dies: the next one to lead delivers it.
// The shard's event is confirmed by the delivery, and nothing is told again.
func TestWhatADeadNodeOwedIsDeliveredByTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, next := newSurgeNode(true), newSurgeNode(false)
		for _, n := range []*surgeNode{first, next} {
			n.hold(part(1, 20, anomaly.Opened), func() { n.confirmed++ })
			n.hear(part(1, 20, anomaly.Opened))
			n.hold(part(1, 21, anomaly.Updated), func() { n.confirmed += 10 })
			n.hear(part(1, 21, anomaly.Updated))
		}
		time.Sleep(gatherFor + time.Second)
		synctest.Wait()
		want := []string{"opened 1-7-w0 21"}
		if !slices.Equal(first.delivered, want) || len(next.delivered) != 0 || first.confirmed != 10 || next.confirmed != 10 {
			t.Fatalf("the first has %q to deliver, the next %q; confirmed %d and %d", first.delivered, next.delivered, first.confirmed, next.confirmed)
		}
		next.leads = true // the first dies
		time.Sleep(owedEvery + time.Second)
		synctest.Wait()
		if !slices.Equal(next.delivered, want) || next.confirmed != 10 {
			t.Fatalf("the next delivers %q, want %q; confirmed %d", next.delivered, want, next.confirmed)
		}
		next.surges.delivered("model:m1", api.EventOpened)
		again := part(1, 21, anomaly.Opened)
		again.Repeat = true // by the shard's next leader
		next.hold(again, func() { next.confirmed += 100 })
		next.hear(again)
		time.Sleep(10 * owedEvery)
		synctest.Wait()
		if next.confirmed != 111 || len(next.delivered) != 1 || len(next.told) != 1 || len(next.owed) != 0 {
			t.Errorf("confirmed %d, delivered %q, told %q, %d owed", next.confirmed, next.delivered, next.told, len(next.owed))
		}
	})
}

// All nodes end before an alert is delivered: the shards tell their events again,
// and the alert goes out, but not to the streams.
func TestAnAlertOfAModelOutlivesAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newSurgeNode(true)
		for id := range 3 {
			e := part(id, 20, anomaly.Opened)
			e.Repeat = true
			n.hold(e, func() { n.confirmed++ })
			n.hear(e)
		}
		time.Sleep(gatherFor + time.Second)
		synctest.Wait()
		n.surges.delivered("model:m1", api.EventOpened)
		if want := []string{"opened 2-7-w0 60"}; !slices.Equal(n.delivered, want) || len(n.told) != 0 || n.confirmed != 3 {
			t.Errorf("delivered %q, want %q; told %q, confirmed %d of 3", n.delivered, want, n.told, n.confirmed)
		}
	})
}

// The node that leads was restarted during a wave and does not know that it ends:
// the others say so, after a while.
func TestTheEndOfAWaveIsToldThoughItsLeaderForgotIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other, restarted := newSurgeNode(false), newSurgeNode(true)
		other.hear(part(1, 20, anomaly.Opened))
		time.Sleep(gatherFor + time.Second)
		synctest.Wait()
		other.surges.delivered("model:m1", api.EventOpened)
		for _, n := range []*surgeNode{other, restarted} {
			n.hold(part(1, 20, anomaly.Closed), func() { n.confirmed++ })
			n.hear(part(1, 20, anomaly.Closed))
		}
		time.Sleep((owedOffers + 1) * owedEvery)
		synctest.Wait()
		other.surges.delivered("model:m1", api.EventClosed)
		if want := []string{"closed 1-7-w0 20"}; !slices.Equal(other.delivered, want) || len(restarted.delivered) != 0 || other.confirmed != 1 || restarted.confirmed != 1 {
			t.Errorf("delivered %q and %q, want %q of the first; confirmed %d and %d", other.delivered, restarted.delivered, want, other.confirmed, restarted.confirmed)
		}
	})
}
