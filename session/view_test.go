package session

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/sluice-iot/sluice/internal/wire"
)

// between is a lock that lets a state go on each time it is taken.
type between func()

func (b between) Lock() { b() }
func (between) Unlock() {}

// TestAViewStaysAsItWasWhileTheStateGoesOn: sessions come, go, change owners, queues and
// subscriptions between any two sessions that a view encodes, and two views are open.
func TestAViewStaysAsItWasWhileTheStateGoesOn(t *testing.T) {
	for seed := range uint64(80) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		r := newRig(t)
		apply := func(n int) {
			for range n {
				r.now += rnd.Int64N(3 * second)
				r.seq++
				r.st.Apply(r.now, AppendBatch(nil, "n0", 1, r.seq, [][]byte{random(rnd, r.st), random(rnd, r.st)}))
				r.st.TakeEffects()
			}
		}
		apply(rnd.IntN(200))
		for round := range 10 {
			first, want := r.st.View(), r.st.Append(nil)
			first.step = 1
			apply(rnd.IntN(10))
			second, later := r.st.View(), r.st.Append(nil)
			second.step = 2
			if got := first.Append(nil, between(func() { apply(rnd.IntN(10)) })); !bytes.Equal(got, want) {
				t.Fatalf("seed %d, round %d: the view is not what the state was", seed, round)
			}
			if got := second.Append([]byte("x"), between(func() { apply(rnd.IntN(3)) })); !bytes.Equal(got, append([]byte("x"), later...)) {
				t.Fatalf("seed %d, round %d: the second view is not what the state was", seed, round)
			}
			first.Release()
			second.Release()
			if len(r.st.views) != 0 {
				t.Fatalf("%d views are left", len(r.st.views))
			}
			if _, err := Decode(wire.NewReader(want)); err != nil {
				t.Fatalf("seed %d, round %d: %v", seed, round, err)
			}
		}
		announced(t, r.st)
	}
}
