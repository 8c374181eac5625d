package node

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// The meta group's replica stays out of elections while its snapshot is damaged and
// no other one has been taken, as a shard's does (shard/abstain.go): it gives no
// vote, asks for none, and lets go of the leadership. That costs the group nothing
// as long as others can lead; where nobody is elected without it, it votes.

// metaAbstainMax is how long the meta group may be without a leader before a
// replica with a damaged snapshot votes all the same.
const metaAbstainMax = 10 * time.Second

// forbearance measures how long elections come to nothing. It is asked once for
// every message of one.
type forbearance struct {
	mu          sync.Mutex
	since, last time.Time // of the elections that follow one another without a leader
}

// lasts reports whether it is too early to give a vote; heard is when a leader was
// last heard of.
func (f *forbearance) lasts(leader bool, heard, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if leader || now.Sub(f.last) > metaAbstainMax { // candidates ask every few seconds
		f.since = now
	}
	if f.last = now; heard.After(f.since) {
		f.since = heard
	}
	return now.Sub(f.since) < metaAbstainMax
}

var errMetaRotten = errors.New("the replica abstains until its snapshot is replaced")

// metaAbstains is why the meta group's replica here takes part in no election, nil
// when it does. It does not block.
func (n *node) metaAbstains() error {
	name := n.rotten.Load()
	if name == nil || !n.forbears.lasts(n.meta.Leader() != "", n.meta.Heard(), time.Now()) {
		return nil
	}
	return fmt.Errorf("%w: %s", errMetaRotten, *name)
}

// badDisk reports whether the meta group is better led elsewhere.
func (n *node) badDisk() bool { return n.rotten.Load() != nil || n.log.Slow() }

// metaPoker makes the meta group's replica here stand for election.
type metaPoker struct{ n *node }

// Poke implements meta.Poker.
func (p metaPoker) Poke(group uint32) error {
	if err := p.n.metaAbstains(); err != nil {
		return err
	}
	return p.n.mux.Poke(group)
}
