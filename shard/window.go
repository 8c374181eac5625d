package shard

import (
	"github.com/sluice-iot/sluice/internal/wire"
)

// The dedup window of a device holds at least what one connection may have in
// flight (the broker's receive maximum), and lets go of older messages once the
// device has moved on: what is in flight on a live connection is answered or
// cut off within the commit deadline (10 s), and the window of a device that is
// away does not age. A publish may be an array, so that a window whose messages
// are small may hold many more of them than a connection holds publishes.
const (
	windowMessagesMin = 64          // kept whatever their age
	windowAge         = 120_000_000 // microseconds of receive time
	windowMessages    = 1024        // kept whatever their size, within windowAge
	windowMessagesMax = 16 * 1024   // one array of the largest kind (telemetry.MessagesMax)
	windowWordsMax    = 64 * 1024   // 512 KiB
)

// window remembers the identities (time, sensor, value bits) of a device's
// latest messages. One entry per message, in a flat queue of words:
//
//	time | received<<countBits + n | n identity hashes
//
// Invariants: len(words)-head words are live; messages entries lie in them;
// messages > 0 implies latest >= max(time of live entries), brought down to it
// whenever the queue is moved; index, when there is one, holds place(time, hash)
// of every live hash.
type window struct {
	words    []uint64
	head     int32
	messages int32
	latest   int64
	index    map[uint64]struct{}
}

const (
	windowCountBits = 11 // telemetry.SensorsMax per message at most
	windowCountMask = 1<<windowCountBits - 1
	// A window of more messages than this gets an index the first time that it
	// must be searched, and loses it when it has shrunk to half: a search along
	// 128 messages costs about as much as looking up the readings of one.
	windowIndexFrom = 128
)

// mayHold reports whether a message of time t may be in the window at all. A
// device whose clock moves forward never gets past it.
func (w *window) mayHold(t int64) bool { return w.messages > 0 && t <= w.latest }

// repeated marks in seen which of the hashes of a message at time t are in the
// window already, and reports whether any is.
func (w *window) repeated(t int64, hashes []uint64, seen []bool) bool {
	if w.messages > windowIndexFrom {
		return w.lookup(t, hashes, seen)
	}
	found := false
	for i := int(w.head); i < len(w.words); {
		n := int(w.words[i+1] & windowCountMask)
		if int64(w.words[i]) == t {
			for _, h := range w.words[i+2 : i+2+n] {
				for k, want := range hashes {
					if h == want {
						seen[k], found = true, true
					}
				}
			}
		}
		i += 2 + n
	}
	return found
}

func (w *window) lookup(t int64, hashes []uint64, seen []bool) bool {
	if w.index == nil {
		w.index = make(map[uint64]struct{}, len(w.words)-int(w.head))
		for i := int(w.head); i < len(w.words); {
			i += w.enter(i)
		}
	}
	found := false
	for k, h := range hashes {
		if _, ok := w.index[place(t, h)]; ok {
			seen[k], found = true, true
		}
	}
	return found
}

// place is a hash's key in the index.
func place(t int64, hash uint64) uint64 { return avalanche(hash ^ uint64(t)*prime1) }

// enter adds the entry at word i to the index and returns its length.
func (w *window) enter(i int) int {
	n := int(w.words[i+1] & windowCountMask)
	for _, h := range w.words[i+2 : i+2+n] {
		w.index[place(int64(w.words[i]), h)] = struct{}{}
	}
	return 2 + n
}

// push adds a message received at received and lets old ones go. A view that
// shares the words keeps those that it sees: push appends behind them, or moves
// them to a place of their own.
func (w *window) push(t, received int64, hashes []uint64, shared bool) {
	if w.head > 0 && int(w.head)*2 >= len(w.words) {
		live := w.words[w.head:]
		if shared {
			w.words = append([]uint64(nil), live...)
		} else {
			w.words = w.words[:copy(w.words, live)]
		}
		w.head = 0
		if w.messages > 0 {
			w.latest = w.maxTime()
		}
	}
	at := len(w.words)
	w.words = append(w.words, uint64(t), uint64(received)<<windowCountBits|uint64(len(hashes)))
	w.words = append(w.words, hashes...)
	if w.index != nil {
		w.enter(at)
	}
	if w.messages == 0 || t > w.latest {
		w.latest = t
	}
	w.messages++
	for w.over(received) {
		w.drop()
	}
	if w.index != nil && w.messages <= windowIndexFrom/2 {
		w.index = nil
	}
}

// over reports whether the oldest message may go.
func (w *window) over(received int64) bool {
	switch {
	case w.messages <= windowMessagesMin:
		return false
	case w.messages > windowMessagesMax, w.messages > windowMessages && len(w.words)-int(w.head) > windowWordsMax:
		return true
	}
	return received-w.oldestReceived() > windowAge
}

func (w *window) oldestReceived() int64 {
	return int64(w.words[w.head+1] >> windowCountBits)
}

func (w *window) drop() {
	t := int64(w.words[w.head])
	n := int32(w.words[w.head+1] & windowCountMask)
	if w.index != nil {
		for _, h := range w.words[w.head+2 : w.head+2+n] {
			delete(w.index, place(t, h))
		}
	}
	w.head += 2 + n
	w.messages--
}

func (w *window) maxTime() int64 {
	latest := int64(w.words[w.head])
	for i := int(w.head); i < len(w.words); i += 2 + int(w.words[i+1]&windowCountMask) {
		latest = max(latest, int64(w.words[i]))
	}
	return latest
}

func (w *window) append(b []byte) []byte {
	b = wire.AppendUint(b, uint64(w.messages))
	for i := int(w.head); i < len(w.words); {
		n := int(w.words[i+1] & windowCountMask)
		b = wire.AppendInt(b, int64(w.words[i]))
		b = wire.AppendUint(b, w.words[i+1])
		for _, h := range w.words[i+2 : i+2+n] {
			b = appendWord(b, h)
		}
		i += 2 + n
	}
	return b
}

func (w *window) decode(r *wire.Reader) {
	n := r.Count(2)
	for range n {
		t, head := uint64(r.Int()), r.Uint()
		words := r.Bytes(8 * int(head&windowCountMask))
		if r.Err() != nil {
			return
		}
		w.words = append(w.words, t, head)
		for ; len(words) > 0; words = words[8:] {
			w.words = append(w.words, wordOf(words))
		}
	}
	if w.messages = int32(n); n > 0 {
		w.latest = w.maxTime()
	}
}
