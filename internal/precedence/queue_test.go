package precedence

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func drain(q *Queue[string]) (out []string) {
	for q.Len() > 0 {
		out = append(out, q.Pop())
	}
	return out
}

func TestUrgentPassesBulkAndBulkGoesOn(t *testing.T) {
	var q Queue[string]
	for _, v := range []string{"b1", "b2", "b3"} {
		q.Put(v, 1, false)
	}
	for _, v := range []string{"u1", "u2", "u3", "u4", "u5", "u6", "u7"} {
		q.Put(v, 1, true)
	}
	want := []string{"u1", "u2", "u3", "b1", "u4", "u5", "u6", "b2", "u7", "b3"}
	if got := drain(&q); !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

func TestBulkLeavesRoomForWhatIsUrgent(t *testing.T) {
	var q Queue[string]
	for i := range 100 {
		if ok, want := q.Push("b", 10, false, 1000), i < 75; ok != want {
			t.Fatalf("bulk %d of 10 bytes taken: %v, want %v", i, ok, want)
		}
	}
	for i := range 100 {
		if ok, want := q.Push("u", 10, true, 1000), i < 25; ok != want {
			t.Fatalf("urgent %d of 10 bytes taken: %v, want %v", i, ok, want)
		}
	}
	if q.Len() != 100 || q.Size() != 1000 {
		t.Errorf("%d wait with %d bytes, want 100 with 1000", q.Len(), q.Size())
	}
}

// TestOrderHoldsWithinAClass pushes and pops at random: nothing is lost, each class
// keeps its order, and bulk that waits is passed by at most three in a row.
func TestOrderHoldsWithinAClass(t *testing.T) {
	type tagged struct {
		urgent bool
		n      int
	}
	rapid.Check(t, func(t *rapid.T) {
		var q Queue[tagged]
		pushed, popped, waiting := [2]int{}, [2]int{}, [2]int{}
		row := 0
		class := map[bool]int{true: 1}
		for range rapid.IntRange(0, 300).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "push") {
				urgent := rapid.Bool().Draw(t, "urgent")
				q.Put(tagged{urgent, pushed[class[urgent]]}, 1, urgent)
				pushed[class[urgent]]++
				waiting[class[urgent]]++
				continue
			}
			size, ok := q.Next()
			if ok != (q.Len() > 0) || ok && size != 1 || q.Len() != waiting[0]+waiting[1] || q.Size() != q.Len() {
				t.Fatalf("next says %d, %v; %d wait with %d bytes, want %v", size, ok, q.Len(), q.Size(), waiting)
			}
			if !ok {
				continue
			}
			bulkWaits := waiting[0] > 0
			v := q.Pop()
			c := class[v.urgent]
			if v.n != popped[c] {
				t.Fatalf("number %d of class %d, want %d", v.n, c, popped[c])
			}
			popped[c]++
			waiting[c]--
			switch {
			case !v.urgent || !bulkWaits:
				row = 0
			default:
				if row++; row > urgentInARow {
					t.Fatalf("%d urgent ones in a row while bulk waits", row)
				}
			}
		}
	})
}
