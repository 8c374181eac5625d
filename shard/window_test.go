package shard

import (
	"math/rand/v2"
	"testing"

	"github.com/sluice-iot/sluice/internal/wire"
)

// reference remembers everything and lets go by the rules of window.
type reference []struct {
	t, received int64
	hashes      []uint64
}

func (r reference) words() (n int) {
	for _, e := range r {
		n += 2 + len(e.hashes)
	}
	return n
}

func (r *reference) push(t, received int64, hashes []uint64) {
	*r = append(*r, struct {
		t, received int64
		hashes      []uint64
	}{t, received, append([]uint64(nil), hashes...)})
	for {
		n := len(*r)
		if n <= windowMessagesMin || n <= windowMessagesMax && (n <= windowMessages || r.words() <= windowWordsMax) && received-(*r)[0].received <= windowAge {
			return
		}
		*r = (*r)[1:]
	}
}

func (r reference) has(t int64, h uint64) bool {
	for _, e := range r {
		for _, x := range e.hashes {
			if e.t == t && x == h {
				return true
			}
		}
	}
	return false
}

func TestWindowRemembersExactlyWhatItsRulesSay(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		var w window
		var ref reference
		now, spread := epoch2026, int64(1+seed*seed*50)
		for step := range 1200 {
			now += rnd.Int64N(int64(1 + seed*20_000))
			at := now - rnd.Int64N(spread)
			hashes := make([]uint64, 1+rnd.IntN(3))
			for i := range hashes {
				hashes[i] = uint64(i)<<8 | rnd.Uint64N(2)
			}
			seen := make([]bool, len(hashes))
			if w.mayHold(at) {
				w.repeated(at, hashes, seen)
			}
			var fresh []uint64
			for i, h := range hashes {
				if want := ref.has(at, h); seen[i] != want {
					t.Fatalf("seed %d step %d: time %d hash %d seen %v, want %v", seed, step, at, h, seen[i], want)
				}
				if !seen[i] {
					fresh = append(fresh, h)
				}
			}
			if len(fresh) > 0 {
				w.push(at, now, fresh, rnd.IntN(2) == 0)
				ref.push(at, now, fresh)
			}
			if rnd.IntN(100) == 0 { // a snapshot in between changes nothing
				var restored window
				restored.decode(wire.NewReader(w.append(nil)))
				w = restored
			}
		}
		if int(w.messages) != len(ref) {
			t.Fatalf("seed %d: %d messages, want %d", seed, w.messages, len(ref))
		}
	}
}

func TestWindowHoldsWhatAConnectionMayHaveInFlight(t *testing.T) {
	var w window
	for i := range int64(1024) { // the broker's default receive maximum, largest messages
		w.push(epoch2026+i, epoch2026+i*10_000, make([]uint64, 1024), false)
	}
	seen := []bool{false}
	if w.repeated(epoch2026, []uint64{0}, seen); !seen[0] {
		t.Fatalf("the oldest of 1,024 messages is forgotten, %d are held", w.messages)
	}
	w = window{}
	for i := range int64(windowMessagesMax) { // one array of the largest kind
		w.push(epoch2026+i, epoch2026, []uint64{5, 6}, false)
	}
	if w.repeated(epoch2026, []uint64{6}, seen[:1]); w.messages != windowMessagesMax || !seen[0] {
		t.Fatalf("%d messages of an array are held, want %d", w.messages, windowMessagesMax)
	}
}

func TestWindowOfAnIdleDeviceDoesNotAge(t *testing.T) {
	var w window
	w.push(epoch2026, epoch2026, []uint64{1}, false)
	w.push(epoch2026+86_400*second, epoch2026+86_400*second, []uint64{2}, false)
	seen := []bool{false}
	if !w.repeated(epoch2026, []uint64{1}, seen) {
		t.Fatal("the message before a day of silence is forgotten")
	}
}

func TestIdentityTellsValuesAndSensorsApart(t *testing.T) {
	seen := map[uint64]bool{}
	for salt := range uint64(50) {
		for i := range 1000 {
			h := identity(salt*0x9E3779B97F4A7C15, float64(i)/100)
			if seen[h] {
				t.Fatalf("sensor %d, value %v looks like another one", salt, float64(i)/100)
			}
			seen[h] = true
		}
	}
	if identity(1, 0.0) == identity(1, negativeZero()) {
		t.Fatal("0 and -0 have different bits and must not look the same")
	}
}

func negativeZero() float64 { z := 0.0; return -z * 1 }
