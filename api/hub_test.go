package api

import (
	"strconv"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
)

func newTestHub(t *testing.T) *Hub {
	t.Helper()
	h, err := NewHub()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func publishN(h *Hub, from, to int) {
	for i := from; i <= to; i++ {
		h.Publish(EventOpened, telemetry.Anomaly{ID: strconv.Itoa(i)})
	}
}

// drain takes what waits in a subscription.
func drain(sub <-chan Event) (all []Event, open bool) {
	for {
		select {
		case e, ok := <-sub:
			if !ok {
				return all, false
			}
			all = append(all, e)
		default:
			return all, true
		}
	}
}

func TestHubResumesBehindTheLastEvent(t *testing.T) {
	h := newTestHub(t)
	sub, cancel := h.Subscribe("")
	defer cancel()
	publishN(h, 1, 10)
	all, _ := drain(sub)
	if len(all) != 10 {
		t.Fatalf("got %d events, want 10", len(all))
	}
	for i := range all {
		again, cancel := h.Subscribe(all[i].ID)
		got, _ := drain(again)
		cancel()
		if len(got) != 9-i || len(got) > 0 && got[0].ID != all[i+1].ID {
			t.Errorf("behind event %d: got %v", i, got)
		}
	}
}

func TestHubAdmitsAGap(t *testing.T) {
	h := newTestHub(t)
	sub, cancel := h.Subscribe("")
	publishN(h, 1, 1)
	first := (<-sub).ID
	cancel()
	cancel() // idempotent
	publishN(h, 2, hubEventsMax+2)
	for _, after := range []string{first, "deadbeef.1", "nonsense", h.id + ".99999999", h.id + ".x"} {
		again, cancel := h.Subscribe(after)
		got, _ := drain(again)
		cancel()
		if len(got) != hubEventsMax+1 || got[0].Kind != EventGap || got[0].ID != "" || got[1].Anomaly.ID != "3" {
			t.Errorf("after %q: got %d events, the first %+v", after, len(got), got[0])
		}
	}
}

func TestHubNeverWaitsForASlowSubscriber(t *testing.T) {
	h := newTestHub(t)
	slow, cancelSlow := h.Subscribe("")
	defer cancelSlow()
	fast, cancelFast := h.Subscribe("")
	defer cancelFast()
	seen := 0
	for i := range 2 * hubQueueMax {
		publishN(h, i, i)
		got, open := drain(fast)
		if seen += len(got); !open {
			t.Fatal("the fast subscriber was cut")
		}
	}
	got, open := drain(slow)
	if open || len(got) < hubQueueMax || seen != 2*hubQueueMax {
		t.Errorf("slow: open %v after %d events; fast: %d events", open, len(got), seen)
	}
}

func TestClosedHubEndsStreams(t *testing.T) {
	h := newTestHub(t)
	sub, cancel := h.Subscribe("")
	defer cancel()
	h.Close()
	publishN(h, 1, 1)
	if _, open := drain(sub); open {
		t.Error("the stream is still open")
	}
	late, cancelLate := h.Subscribe("")
	defer cancelLate()
	if _, open := drain(late); open {
		t.Error("a stream began after Close")
	}
}
