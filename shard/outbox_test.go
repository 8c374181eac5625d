package shard

import (
	"fmt"
	"slices"
	"testing"
)

// TestWhatIsToldAgainComesBeforeWhatIsNew: a new leader whose first event closes an
// anomaly tells the receiver of its opening first, and of nothing twice.
func TestWhatIsToldAgainComesBeforeWhatIsNew(t *testing.T) {
	var told []string
	outbox := []Event{{Index: 11}, {Index: 12}}
	teller := func() *teller {
		told = nil
		return &teller{
			emit: func(events []Event) {
				for _, e := range events {
					told = append(told, fmt.Sprintf("%d %t", e.Index, e.Repeat))
				}
			},
			outbox: func(upTo uint64) []Event {
				return slices.DeleteFunc(slices.Clone(outbox), func(e Event) bool { return e.Index > upTo })
			},
		}
	}
	const follower, term = 0, 5
	want := []string{"11 true", "12 false"}

	before := teller() // the event comes before the look at the outbox
	before.live(follower, outbox[:1])
	before.live(term, outbox[1:])
	before.again(term)
	if !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}

	between := teller() // applied, so that it is in the outbox, but not told yet
	between.live(follower, outbox[:1])
	between.again(term)
	between.live(term, outbox[1:])
	if !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}

	after := teller() // both were applied under another leader
	after.live(follower, outbox)
	after.again(term)
	after.again(term)
	if want := []string{"11 true", "12 true"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}

	restored := teller() // both came with a snapshot
	restored.passed.Store(20)
	restored.again(term)
	restored.again(term + 1)
	if want := []string{"11 true", "12 true", "11 true", "12 true"}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}
