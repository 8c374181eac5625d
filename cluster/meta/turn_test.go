package meta

import (
	"testing"
	"time"
)

func TestVotersStandInTurnAndGiveWay(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	lost := turn{}.led(7).leaderless(at(0), 7)
	for _, c := range []struct {
		what string
		t    turn
		rank int
		at   int
		want bool
	}{
		{"the first stands at once", lost, 0, 0, true},
		{"the second waits", lost, 1, 299, false},
		{"and then stands", lost, 1, 300, true},
		{"a changed term: somebody stands", lost.leaderless(at(10), 8), 0, 309, false},
		{"and has not won", lost.leaderless(at(10), 8), 0, 310, true},
		{"the second gives twice the time", lost.leaderless(at(10), 8), 1, 609, false},
		{"the same term again changes nothing", lost.leaderless(at(10), 8).leaderless(at(200), 8), 0, 310, true},
		{"an election needs time", lost.stood(at(0), time.Second), 0, 599, false},
		{"before the next", lost.stood(at(0), time.Second), 0, 600, true},
		{"its own term is no news", lost.stood(at(0), time.Second).leaderless(at(50), 8), 0, 600, true},
		{"the time grows", lost.stood(at(0), time.Second).stood(at(600), time.Second), 0, 1499, false},
		{"to a bound", lost.stood(at(0), time.Second).stood(at(600), time.Second).stood(at(1500), time.Second), 0, 2500, true},
		{"it gives way", lost.wait(at(0)), 0, 299, false},
		{"for a moment", lost.wait(at(0)), 0, 300, true},
		{"a leader ends it all", lost.wait(at(0)).led(9).leaderless(at(50), 9), 0, 50, true},
	} {
		if got := c.t.begun(at(c.at)) && c.t.mine(at(c.at), c.rank); got != c.want {
			t.Errorf("%s: rank %d at %d ms: %v", c.what, c.rank, c.at, got)
		}
	}
}
