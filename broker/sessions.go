package broker

import (
	"sync"

	"github.com/sluice-iot/sluice/session"
)

// sessions is the node's table of connected clients. The gates serialise what
// happens to one client id here, taking over and ending included.
type sessions struct {
	mu    sync.RWMutex
	byID  map[string]*live
	early map[string]uint64 // clients whose CONNECT is being decided: how far their queues go
	gates [256]sync.Mutex
}

func (t *sessions) get(id string) *live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

func (t *sessions) put(s *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[s.id] = s
}

func (t *sessions) remove(s *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[s.id] == s {
		delete(t.byID, s.id)
	}
}

func (t *sessions) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID)
}

func (t *sessions) all() []*live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*live, 0, len(t.byID))
	for _, s := range t.byID {
		out = append(out, s)
	}
	return out
}

// expect notes what is queued for a client between the decision about its CONNECT
// and its first moment here.
func (t *sessions) expect(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.early[id]; !ok {
		t.early[id] = 0
	}
}

// arrived returns what was noted and ends it.
func (t *sessions) arrived(id string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.early[id]
	delete(t.early, id)
	return n
}

// find returns the session of ref, nil when it is not here. A client that is about
// to be here learns later how far its queue goes.
func (t *sessions) find(ref session.Ref, last uint64) *live {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.early[ref.Client]; ok {
		t.early[ref.Client] = max(n, last)
	}
	if s := t.byID[ref.Client]; s != nil && s.ref == ref {
		return s
	}
	return nil
}
