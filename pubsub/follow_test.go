package pubsub

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// TestTelemetryDoesNotWaitForAShardOfItsReadersThatIsOutOfReach: its own shard has it. Clients that
// are connected get it, and the session in the shard does when that is back, in order. What
// is not telemetry waits.
func TestTelemetryDoesNotWaitForAShardOfItsReadersThatIsOutOfReach(t *testing.T) {
	f := newFleet(t, 3)
	leader, lost, other := f.nodes[0], f.nodes[1], f.nodes[2]
	ref := session.Ref{Client: "reader", Epoch: leader.connect("reader").Epoch}
	leader.change(ref, "devices/+/telemetry")
	other.subscribe("devices/+/telemetry")
	eventually(t, "the node knows both readers", func() bool { return lost.hub.routes.filters.Load() == 2 })
	part(leader, lost, true)
	const before = 5 // while the leader may still come back
	for i := range before {
		if err := lost.send("devices/d/telemetry", fmt.Sprint(i)); err != nil {
			t.Fatalf("telemetry %d: %v", i, err)
		}
	}
	eventually(t, "the leases have run out", func() bool { return !lost.hub.routes.fresh(1, time.Now()) })
	plain := make(chan error, 1)
	lost.hub.Publish(&session.Message{Topic: "a/b", Payload: []byte("plain"), QoS: 1}, session.Key{}, func(err error) { plain <- err })
	for i := before; i < 2*before; i++ {
		if err := lost.send("devices/d/telemetry", fmt.Sprint(i)); err != nil {
			t.Fatalf("telemetry %d without a lease: %v", i, err)
		}
	}
	want := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}
	eventually(t, "a connected reader has all", func() bool { return slices.Equal(other.received(), want) })
	select {
	case err := <-plain:
		t.Fatalf("what is not telemetry was decided without a lease: %v", err)
	default:
	}
	if got := leader.seen(&leader.queued); len(got) > 0 {
		t.Fatalf("through a network that is cut came %v", got)
	}
	part(leader, lost, false)
	if err := <-plain; err != nil {
		t.Errorf("what waited: %v", err)
	}
	for i, s := range want {
		want[i] = fmt.Sprintf("reader@%d %d:%s", ref.Epoch, i+1, s)
	}
	eventually(t, "the session has all in order", func() bool { return slices.Equal(leader.seen(&leader.queued), want) })
}

// TestANodeThatDoesNotKnowAShardsFiltersLetsTelemetryWait: it has never heard its leader, or not to
// the end.
func TestANodeThatDoesNotKnowAShardsFiltersLetsTelemetryWait(t *testing.T) {
	r, s := newRoutes("n1.00000001"), shardSource(0)
	check := func(want bool, when string) {
		t.Helper()
		if got := r.whole(1); got != want {
			t.Errorf("%s, that all filters are known is %v", when, got)
		}
	}
	check(false, "before a leader spoke")
	r.apply(s, mark{1 << eraBits, 1}, true, nil)
	check(false, "while more is to come")
	r.renew(s, 1<<eraBits, time.Now())
	check(true, "when all has come, however long ago")
	r.apply(s, mark{2 << eraBits, 1}, true, nil)
	check(false, "while a new leader speaks")
}

// TestOnlySilenceEndsAWaitEarly: a shard that is heard is waited for, whatever it takes, and its
// refusal is the publisher's.
func TestOnlySilenceEndsAWaitEarly(t *testing.T) {
	var got []error
	f := &following{finish: func(err error) { got = append(got, err) }, left: []telemetry.ShardID{1, 2}}
	if f.look(nil) || f.look(silence{2: true}) || len(got) > 0 {
		t.Fatal("the wait ended while a shard that is heard has not answered")
	}
	f.answered(1, nil)
	if len(got) > 0 {
		t.Fatal("the wait ended without a look at what is silent")
	}
	if !f.look(silence{2: true}) || len(got) != 1 || got[0] != nil {
		t.Fatalf("with only a silent shard left, it ended with %v", got)
	}
	f.answered(2, errors.New("late"))
	if !f.look(nil) || len(got) != 1 {
		t.Fatalf("it ended more than once: %v", got)
	}
	f = &following{finish: func(err error) { got = append(got, err) }, left: []telemetry.ShardID{1, 2}}
	f.answered(2, ErrBusy)
	if len(got) != 2 || !errors.Is(got[1], ErrBusy) {
		t.Fatalf("a refusal ends it with %v", got[1:])
	}
}
