package shard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/session"
)

// leaderOfTest answers questions for retained messages: with the filter as the topic.
type leaderOfTest struct {
	mu      sync.Mutex
	asked   []int // filters in each question
	answers int   // of each question at most
	began   chan struct{}
	hold    chan struct{}
}

func (l *leaderOfTest) ask(ctx context.Context, filters []string) ([][]*session.Message, error) {
	l.mu.Lock()
	l.asked = append(l.asked, len(filters))
	l.mu.Unlock()
	l.began <- struct{}{}
	select {
	case <-l.hold:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var out [][]*session.Message
	for _, f := range filters[:min(l.answers, len(filters))] {
		if f == "bad" {
			return nil, errors.New("no leader")
		}
		out = append(out, []*session.Message{{Topic: f}})
	}
	return out, nil
}

func (q *retainedQueue) gathered(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		q.mu.Lock()
		got := len(q.waiting)
		q.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d questions wait, want %d", got, n)
		}
	}
}

func TestSubscriptionsAskAShardTogether(t *testing.T) {
	l := &leaderOfTest{answers: 10, began: make(chan struct{}, 100), hold: make(chan struct{})}
	var q retainedQueue
	var wg sync.WaitGroup
	ask := func(filter string) {
		wg.Go(func() {
			got, err := q.ask(t.Context(), filter, l.ask)
			if err != nil || len(got) != 1 || got[0].Topic != filter {
				t.Errorf("%s: got %v, %v", filter, got, err)
			}
		})
	}
	ask("first")
	<-l.began
	for i := range 25 {
		ask(fmt.Sprint("f", i))
	}
	q.gathered(t, 25)
	close(l.hold)
	wg.Wait()
	if want := []int{1, 25, 15, 5}; fmt.Sprint(l.asked) != fmt.Sprint(want) { // ten are answered at a time
		t.Errorf("questions for %v filters, want %v", l.asked, want)
	}
	if q.asking || len(q.waiting) != 0 {
		t.Errorf("left behind: asking %v, %d waiting", q.asking, len(q.waiting))
	}
}

func TestWhoGivesUpTakesNobodyAlong(t *testing.T) {
	l := &leaderOfTest{answers: 10, began: make(chan struct{}, 100), hold: make(chan struct{})}
	var q retainedQueue
	var wg sync.WaitGroup
	impatient, leave := context.WithCancel(t.Context())
	wg.Go(func() {
		if _, err := q.ask(impatient, "first", l.ask); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	<-l.began
	other, leaveToo := context.WithCancel(t.Context())
	wg.Go(func() {
		if _, err := q.ask(other, "gone before its turn", l.ask); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	q.gathered(t, 1)
	wg.Go(func() {
		if got, err := q.ask(t.Context(), "stays", l.ask); err != nil || got[0].Topic != "stays" {
			t.Errorf("got %v, %v", got, err)
		}
	})
	q.gathered(t, 2)
	leaveToo()
	q.gathered(t, 1)
	leave()
	<-l.began
	close(l.hold)
	wg.Wait()
	if q.asking || len(q.waiting) != 0 {
		t.Errorf("left behind: asking %v, %d waiting", q.asking, len(q.waiting))
	}
}

func TestAFailedQuestionFailsForAllOfIt(t *testing.T) {
	l := &leaderOfTest{answers: 10, began: make(chan struct{}, 100), hold: make(chan struct{})}
	var q retainedQueue
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = q.ask(t.Context(), "first", l.ask) }) // holds the others back
	<-l.began
	for range 3 {
		wg.Go(func() {
			if _, err := q.ask(t.Context(), "bad", l.ask); err == nil {
				t.Error("no error")
			}
		})
	}
	q.gathered(t, 3)
	close(l.hold)
	wg.Wait()
}

func TestRetainedAnswersAreCutAtAFilter(t *testing.T) {
	var b []byte
	for n := range 3 {
		var found []*session.Message
		for i := range n {
			found = append(found, &session.Message{Topic: fmt.Sprint("t/", i), Payload: []byte("x")})
		}
		b = appendRetained(b, found)
	}
	out, err := decodeRetained(b)
	if err != nil || len(out) != 3 || len(out[0]) != 0 || len(out[1]) != 1 || len(out[2]) != 2 || out[2][1].Topic != "t/1" {
		t.Fatalf("%v, %v", out, err)
	}
	if _, err := decodeRetained([]byte{200}); err == nil {
		t.Error("an answer cut short was read")
	}
}
