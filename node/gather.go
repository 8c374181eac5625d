package node

import (
	"sync"
	"time"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// gatherFor is how long the first anomaly of a device with peers is held back, and
// how long the shards' parts of a wave are collected before it is told: devices
// that report once in ten seconds have all spoken by then.
const gatherFor = 10 * time.Second

// gather holds back events of devices that have peers: what turns out to be the
// beginning of a wave is told as the wave alone.
type gather struct {
	mu   sync.Mutex
	held map[string][]heldEvent // by anomaly
}

type heldEvent struct{ tell, drop func() }

func newGather() *gather { return &gather{held: map[string][]heldEvent{}} }

// pass calls tell, now or when the time is over, or drop. Neither may block: they
// are called in the order of the events, under a lock.
func (g *gather) pass(e *shard.Event, tell, drop func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	list, held := g.held[e.ID]
	switch {
	case held && e.Anomaly.Wave != "":
		delete(g.held, e.ID)
		for _, h := range list {
			h.drop()
		}
		drop()
	case held:
		g.held[e.ID] = append(list, heldEvent{tell, drop})
	case e.Model != "" && e.Transition == anomaly.Opened:
		g.held[e.ID] = []heldEvent{{tell, drop}}
		time.AfterFunc(gatherFor, func() { g.release(e.ID) })
	default:
		tell()
	}
}

func (g *gather) release(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range g.held[id] {
		h.tell()
	}
	delete(g.held, id)
}

// surges makes one alert of the waves of all shards. Every node hears of all of
// them; tell is called on each, with the same alert.
type surges struct {
	tell func(kind api.EventKind, a *telemetry.Anomaly, change uint64)

	mu  sync.Mutex
	now map[string]*surgeState // by the device of the wave's anomaly, which names the model
}

type surgeState struct {
	parts map[telemetry.ShardID]telemetry.Anomaly
	last  int64  // latest Opened of a part
	told  int    // devices when it was last told, 0 not yet
	id    string // under which it is told
}

func newSurges(tell func(api.EventKind, *telemetry.Anomaly, uint64)) *surges {
	return &surges{tell: tell, now: map[string]*surgeState{}}
}

// hear takes one shard's event of its wave.
func (s *surges) hear(e *shard.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, id := e.Anomaly, e.Anomaly.Device
	w := s.now[id]
	if w == nil || e.Transition == anomaly.Opened && !shard.SameWave(w.last, a.Opened) {
		if e.Transition == anomaly.Closed {
			return // of a wave that began before this node did
		}
		w = &surgeState{parts: map[telemetry.ShardID]telemetry.Anomaly{}}
		s.now[id] = w
		time.AfterFunc(gatherFor, func() { s.begin(id, w) })
	}
	w.parts[e.Shard] = a
	w.last = max(w.last, a.Opened)
	if w.told > 0 {
		s.goOn(id, w)
	}
}

// begin tells of a wave for the first time.
func (s *surges) begin(id string, w *surgeState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, devices := w.merged()
	w.told, w.id = max(devices, 1), a.ID
	s.tell(api.EventOpened, &a, uint64(w.told))
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
		s.tell(api.EventClosed, &a, uint64(max(devices, w.told)))
	case devices >= 2*w.told:
		w.told = devices
		s.tell(api.EventChanged, &a, uint64(devices))
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
