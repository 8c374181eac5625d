package anomaly

import "testing"

// What is no news ranks below an alert, the higher the more of the last readings
// was surprising, and readings without surprise by how long they have been quiet.
func TestWhatLastsRanksBelowNews(t *testing.T) {
	var a alarm
	was := 0.0
	for i := range 40 { // a fault: every reading as surprising as the target
		got := told(false, 0.5, a.recent(0.5))
		if got <= was || got >= lastMost {
			t.Fatalf("reading %d of a fault: severity %v behind %v, want more and below %v", i, got, was, float64(lastMost))
		}
		if was = got; i > 20 {
			break
		}
	}
	if gap := told(false, 0, a.recent(0)); gap < was/2 {
		t.Errorf("a reading without surprise within the fault has severity %v, %v before", gap, was)
	}
	for i := range 100 { // quiet again
		got := told(false, 0, a.recent(0))
		if got >= was {
			t.Fatalf("quiet reading %d: severity %v behind %v, want less", i, got, was)
		}
		was = got
	}
	for range 200 {
		a.recent(0)
	}
	if a.lasting != 0 {
		t.Errorf("a mean score of %v is left, want none: numbers without end are slow", a.lasting)
	}
	if got := told(true, 1, a.recent(1)); got != openShare {
		t.Errorf("the rarest reading of an open alert has severity %v, want %v", got, float64(openShare))
	}
}
