package node

import (
	"sync"
	"time"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// surges makes one alert of the waves of all shards. Every node hears of all of
// them and comes to the same alert; one delivers it, the others owe it until
// they hear that it is delivered. The events of the shards stay unconfirmed as
// long, so that not even the end of all nodes loses an alert.
type surges struct {
	tell    func(kind api.EventKind, a *telemetry.Anomaly)
	deliver func(*telling) bool // takes it, if that is this node's to do; nil where nobody is told

	mu   sync.Mutex
	now  map[string]*surgeState // by the device of the wave's anomaly, which names the model
	owed map[string][]*telling  // the same
	held map[string][]heldPart  // the same: events of shards led here
}

type surgeState struct {
	parts map[telemetry.ShardID]telemetry.Anomaly
	last  int64  // latest Opened of a part
	told  int    // devices when it was last told, 0 not yet
	id    string // under which it is told
	known bool   // its opening is delivered
	quiet bool   // it began with what a new leader tells again: the streams had it
}

// telling is an alert of a model on its way to the receiver.
type telling struct {
	kind    api.EventKind
	anomaly telemetry.Anomaly
	change  uint64
	taken   bool // by this node's sender
	offers  int  // that nobody was heard to follow
}

// overdue reports that nobody seems to deliver it: who leads was restarted and
// does not know of the wave.
func (t *telling) overdue() bool { return t.offers >= owedOffers }

type heldPart struct {
	kind api.EventKind
	done func()
}

const (
	// owedEvery is how soon another node notices that it has to deliver what a dead
	// one had: an election and its news take less.
	owedEvery = 5 * time.Second
	// owedOffers are how many times the leader may be late before every node that
	// knows of an alert delivers it: a repeat is better than silence.
	owedOffers = 6
	// owedMax bounds the alerts of a model that a receiver, or the nodes' memory of
	// it, is behind; the oldest go.
	owedMax = 64
)

func newSurges(tell func(api.EventKind, *telemetry.Anomaly), deliver func(*telling) bool) *surges {
	return &surges{
		tell: tell, deliver: deliver,
		now: map[string]*surgeState{}, owed: map[string][]*telling{}, held: map[string][]heldPart{},
	}
}

// hear takes one shard's event of its wave.
func (s *surges) hear(e *shard.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, id := e.Anomaly, e.Anomaly.Device
	w := s.now[id]
	if w != nil && e.Repeat {
		if _, heard := w.parts[e.Shard]; heard {
			return // from the leader before
		}
	}
	if w == nil || e.Transition == anomaly.Opened && !shard.SameWave(w.last, a.Opened) {
		if e.Transition == anomaly.Closed && !e.Repeat {
			s.release(id, api.EventClosed)
			return // of a wave that began before this node did
		}
		w = &surgeState{parts: map[telemetry.ShardID]telemetry.Anomaly{}, quiet: e.Repeat}
		s.now[id] = w
		time.AfterFunc(gatherFor, func() { s.begin(id, w) })
	}
	w.parts[e.Shard] = a
	w.last = max(w.last, a.Opened)
	if w.told > 0 {
		s.goOn(id, w)
	}
}

// hold keeps an event of a shard led here unconfirmed until the alert that it is
// a part of is delivered.
func (s *surges) hold(e *shard.Event, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wait(e.Anomaly.Device, kindOf(e), done)
}

// fold does the same with the events of a device's anomaly that has become a part of a
// model's: confirmed before the alert, its opening would be forgotten while its end is
// not, and the next leader would tell of an end alone.
func (s *surges) fold(model string, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wait(shard.WaveOf(model), api.EventOpened, done)
}

func (s *surges) wait(id string, kind api.EventKind, done func()) {
	w := s.now[id]
	if s.deliver == nil || kind == api.EventChanged || kind == api.EventOpened && w != nil && w.known {
		done() // nobody waits for it
		return
	}
	s.held[id] = append(s.held[id], heldPart{kind, done})
}

// begin tells of a wave for the first time.
func (s *surges) begin(id string, w *surgeState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, devices := w.merged()
	w.told, w.id = max(devices, 1), a.ID
	s.say(w, api.EventOpened, &a, w.told)
	s.goOn(id, w)
}

// goOn tells of a wave that is over, or has doubled.
func (s *surges) goOn(id string, w *surgeState) {
	a, devices := w.merged()
	switch {
	case a.Closed != 0:
		if s.now[id] == w {
			delete(s.now, id)
		}
		s.say(w, api.EventClosed, &a, max(devices, w.told))
	case devices >= 2*w.told:
		w.told = devices
		s.say(w, api.EventChanged, &a, devices)
	}
}

// say tells the streams, and owes the alert to the receiver.
func (s *surges) say(w *surgeState, kind api.EventKind, a *telemetry.Anomaly, devices int) {
	if !w.quiet {
		s.tell(kind, a)
	}
	if s.deliver == nil {
		return
	}
	owed := s.owed[a.Device]
	first := len(owed) == 0
	owed = append(owed, &telling{kind: kind, anomaly: *a, change: uint64(devices)})
	s.owed[a.Device] = owed[max(0, len(owed)-owedMax):]
	if first {
		device := a.Device
		time.AfterFunc(owedEvery, func() { s.again(device) })
	}
	s.offer(a.Device)
}

// offer gives to the sender what this node has to deliver.
func (s *surges) offer(device string) {
	for _, t := range s.owed[device] {
		if !t.taken {
			t.taken = s.deliver(t)
			t.offers++
		}
	}
}

// again offers what is still owed: the node that had it may be dead.
func (s *surges) again(device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.owed[device]) == 0 {
		return
	}
	s.offer(device)
	time.AfterFunc(owedEvery, func() { s.again(device) })
}

// delivered says that an alert has reached the receiver, or is a dead letter.
func (s *surges) delivered(device string, kind api.EventKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.now[device]; w != nil && kind == api.EventOpened {
		w.known = true
	}
	kept := s.owed[device][:0]
	for _, t := range s.owed[device] {
		if t.kind != kind {
			kept = append(kept, t)
		}
	}
	if s.owed[device] = kept; len(kept) == 0 {
		delete(s.owed, device)
	}
	s.release(device, kind)
}

// release lets go of the events that waited for an alert.
func (s *surges) release(device string, kind api.EventKind) {
	var kept []heldPart
	for _, h := range s.held[device] {
		if h.kind == kind {
			h.done()
		} else {
			kept = append(kept, h)
		}
	}
	if s.held[device] = kept; len(kept) == 0 {
		delete(s.held, device)
	}
}

func (w *surgeState) merged() (a telemetry.Anomaly, devices int) {
	parts := make([]telemetry.Anomaly, 0, len(w.parts))
	for _, p := range w.parts {
		parts = append(parts, p)
	}
	a = shard.MergeWaves(parts)[0]
	if w.id != "" {
		a.ID = w.id
	}
	return a, shard.WaveDevices(&a)
}
