package pubsub

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/session"
)

// plainTopic is of the bulk class, as everything was before there were classes.
const plainTopic = "plain/d/commands"

// stopwatch takes the age of messages that begin with the time of their publish.
type stopwatch struct {
	mu     sync.Mutex
	topics map[string][]time.Duration
}

func (s *stopwatch) note(topic string, payload []byte) {
	if topic != urgentTopic && topic != plainTopic {
		return
	}
	age := time.Duration(time.Now().UnixNano() - int64(binary.LittleEndian.Uint64(payload)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topics[topic] = append(s.topics[topic], age)
}

func (s *stopwatch) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return min(len(s.topics[urgentTopic]), len(s.topics[plainTopic]))
}

func (s *stopwatch) report(b *testing.B) {
	for name, topic := range map[string]string{"command": urgentTopic, "bulk-class": plainTopic} {
		l := s.topics[topic]
		slices.SortFunc(l, cmp.Compare)
		for _, p := range []int{50, 99} {
			b.ReportMetric(l[(len(l)-1)*p/100].Seconds()*1e3, fmt.Sprintf("ms-p%d/%s", p, name))
		}
	}
	b.ReportMetric(0, "ns/op")
}

// slowReader is a node whose clients take a message every 50 us.
type slowReader struct {
	*testNode
	watch *stopwatch
}

func (s slowReader) Deliver(m *session.Message, _ []string) {
	for end := time.Now().Add(50 * time.Microsecond); time.Now().Before(end); {
		continue
	}
	s.watch.note(m.Topic, m.Payload)
}

// overload publishes telemetry as fast as it is taken, and every 5 ms a command and one
// of the bulk class, b.N of each.
func overload(b *testing.B, watch *stopwatch, publish func(topic string, payload []byte) (taken bool)) {
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		payload := make([]byte, 200)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if !publish(bulkTopic, payload) {
				time.Sleep(time.Millisecond)
			}
		}
	})
	time.Sleep(2 * time.Second) // until as much waits as may
	for range b.N {
		for _, topic := range []string{urgentTopic, plainTopic} {
			payload := binary.LittleEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
			for !publish(topic, payload) {
				time.Sleep(100 * time.Microsecond)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	for end := time.Now().Add(time.Minute); watch.count() < b.N; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("%d of %d commands have arrived", watch.count(), b.N)
		}
	}
	close(stop)
	done.Wait()
	watch.report(b)
}

// BenchmarkCommandsToASlowPeer is the latency of commands for clients of a node that takes
// less telemetry than it is sent, beside that of messages without precedence.
func BenchmarkCommandsToASlowPeer(b *testing.B) {
	f := newFleet(b, 2)
	n := f.nodes[1]
	n.subscribe("#")
	watch := &stopwatch{topics: map[string][]time.Duration{}}
	var slow Local = slowReader{n, watch}
	n.hub.local.Store(&slow)
	p := f.nodes[0].hub.peer(n.id)
	overload(b, watch, func(topic string, payload []byte) bool {
		m := &session.Message{Topic: topic, Payload: payload}
		p.mu.Lock()
		room := p.outbox.Size()+2*m.Bytes() < outboxBytesDefault*3/4
		p.mu.Unlock()
		if room || topic == urgentTopic {
			f.nodes[0].hub.Publish(m, session.Key{}, func(error) {})
			return true
		}
		return false
	})
}

// BenchmarkCommandsToASlowShard is the time until a command is acknowledged by a shard,
// with a durable subscriber to everything, that commits a batch in 5 ms.
func BenchmarkCommandsToASlowShard(b *testing.B) {
	h, g, ref := slowHub(b)
	g.each = 5 * time.Millisecond
	watch := &stopwatch{topics: map[string][]time.Duration{}}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go func() { // the subscriber takes all
		for seq := uint64(1); ctx.Err() == nil; {
			_, last, err := g.Fetch(ctx, 0, ref, seq)
			for ; err == nil && seq <= last; seq++ {
				h.Ack(ref, seq)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	overload(b, watch, func(topic string, payload []byte) bool {
		refused := make(chan bool, 1)
		h.Publish(&session.Message{Topic: topic, Payload: payload, QoS: 1}, session.Key{}, func(err error) {
			if err == nil {
				watch.note(topic, payload)
			}
			select {
			case refused <- errors.Is(err, ErrBusy):
			default:
			}
		})
		select {
		case full := <-refused:
			return !full
		default:
			return true
		}
	})
}
