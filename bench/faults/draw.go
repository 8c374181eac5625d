package faults

import (
	"iter"
	"math/rand/v2"
	"time"
)

// Draw gives every fault once with the seed, or, for a time, faults and seeds
// drawn from the seed.
func Draw(faults []*Fault, seed uint64, length time.Duration) iter.Seq2[*Fault, uint64] {
	return func(yield func(*Fault, uint64) bool) {
		if length == 0 {
			for _, f := range faults {
				if !yield(f, seed) {
					return
				}
			}
			return
		}
		rng := rand.New(rand.NewPCG(seed, 2))
		for end := time.Now().Add(length); time.Now().Before(end); {
			if !yield(faults[rng.IntN(len(faults))], rng.Uint64()%1_000_000) {
				return
			}
		}
	}
}
