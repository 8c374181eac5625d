package anomaly

// crest is the tail of a device's most surprising sensor, message by message. Its
// variable is in nats already: it falls by about e per unit, but begins
// anywhere. Thirty sensors that go their own ways have a surprising one in every
// message, thirty that move as one do not. Other than a series' tail it therefore
// keeps a fixed share of messages above its threshold and counts the episodes that
// begin there, instead of keeping a fixed rate of episodes. The messages of one
// episode count by 1, 1/2, 1/3...: a sensor that switches, and one that broke, stay
// surprising for hundreds of messages, and each of them is one event.
type crest struct {
	q     float64 // threshold: two per cent of the messages lie above
	mean  float32 // mean excess of an episode's peak over q
	sq    float32 // mean squared excess
	rate  float32 // episodes per message
	top   float32 // peak of the present episode
	count uint32  // messages learned from, saturating
	eps   uint16  // episodes that mean and sq rest on, saturating
	calm  uint16  // messages below q in the present episode
	long  uint16  // messages of the present episode
	over  uint16  // messages above q in it
	in    bool    // an episode is going on
}

const (
	crestAfter  = 200   // messages behind the warm-up at which it begins to learn: the sensors' tails move until then
	crestReady  = 200   // messages after which it is believed
	crestBegin  = 4.6   // nats above ln(sensors) where the threshold begins: 2 % in declustered form, for independent sensors
	crestRate   = 0.01  // episodes per message to begin with
	crestGain   = 0.02  // of the threshold, mean excesses per message, once it has settled
	crestHold   = 64    // the k-th message above q of an episode moves it by 1/k, at least by this: a fault must not become the norm
	crestLong   = 96    // messages after which an episode is over even if it goes on, unless
	crestDense  = 4     // one message of so many is above q: then it is one event, however long
	crestMost   = 60000 // messages of an episode that are counted
	crestForget = 1e-4  // of the rate, per message
	crestDoubt  = 1.3   // shape + crestDoubt/episodes, see shape; 1 would be the exponential tail's own
	crestFresh  = 2.0   // weight of an episode beside those before it: the tails below it go on settling
	crestPrior  = 8     // episodes that the beginning counts as
)

func (t *crest) known() float64 { return float64(t.eps) + crestPrior }

// nats is -ln of the rate of episodes per message whose peak reaches u.
func (t *crest) nats(u float64) float64 {
	if u <= 0 {
		return 0
	}
	base := -ln(float64(t.rate))
	e := u - t.q
	if e <= 0 { // nothing at all is no surprise, wherever the threshold lies: an open alert must close
		return mul(base, u/t.q)
	}
	sigma, xi := shape(float64(t.mean), float64(t.sq), t.known(), crestDoubt, 1)
	return base + excessNats(e/sigma, xi)
}

// learn takes the surprise of one message of so many sensors.
func (t *crest) learn(u float64, sensors int) {
	if t.count == 0 {
		t.mean, t.sq, t.rate = 1, 2, crestRate
		t.q = lnCount(sensors) + crestBegin
	}
	n, mean, q := float64(t.count), float64(t.mean), t.q
	above := u > q
	step := mul(larger(8/(n+16), crestGain), mean+mul(0.1, q))
	if !above {
		t.q = larger(q-mul(step, tailRate), 0.2)
	} else {
		if t.in {
			step /= 1 + float64(min(t.over, crestHold))
		}
		t.q = q + mul(step, 1-tailRate)
	}
	began := 0.0
	if t.in {
		t.goOn(u, q, above)
	} else if above {
		t.in, t.calm, t.long, t.top, t.over = true, 0, 0, float32(u), 1
		began = 1
	}
	t.rate = float32(toward(float64(t.rate), began, larger(1/(n+400), crestForget)))
	if t.count < countCap {
		t.count++
	}
}

// goOn moves the present episode on by a message.
func (t *crest) goOn(u, q float64, above bool) {
	if above {
		t.calm = 0
		t.over = min(t.over+1, crestMost)
		t.top = larger32(t.top, float32(u))
	} else {
		t.calm++
	}
	t.long = min(t.long+1, crestMost)
	if t.calm < episodeGap && (t.long < crestLong || t.over > t.long/crestDense) {
		return
	}
	t.in = false
	t.mean, t.sq = moments(t.mean, t.sq, float64(t.top)-q, crestFresh/(t.known()+crestFresh), squareDevice)
	if t.eps < episodesMax {
		t.eps++
	}
}
