package gossip

import (
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
)

// member is what this node remembers of another.
type member struct {
	Member
	addr     net.UDPAddr
	heard    time.Time // last answer to anybody's ping here
	lost     int       // direct pings in a row without an answer
	pinging  bool
	urgent   bool    // somebody asked for a probe now
	reported *Member // what subscribers were told last
}

// delegate is what memberlist calls. It calls most of it with its own lock held:
// nothing here may block or call memberlist.
type delegate struct{ g *Gossip }

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(int) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	return encodeMember(d.g.self)
}

// NotifyMsg implements memberlist.Delegate; we send no messages.
func (delegate) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (delegate) MergeRemoteState([]byte, bool) {}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.g.learn(n, Alive) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.g.learn(n, Alive) }

// NotifyLeave implements memberlist.EventDelegate.
func (d delegate) NotifyLeave(n *memberlist.Node) { d.g.learn(n, Dead) }

// NotifyAlive implements memberlist.AliveDelegate: it keeps strangers out.
func (d delegate) NotifyAlive(n *memberlist.Node) error { return d.g.admit(n) }

// NotifyMerge implements memberlist.MergeDelegate.
func (d delegate) NotifyMerge(nodes []*memberlist.Node) error {
	for _, n := range nodes {
		if err := d.g.admit(n); err != nil {
			return err
		}
	}
	return nil
}

// NotifyConflict implements memberlist.ConflictDelegate: a restart on another
// port before the old one is declared dead, or two processes with one node id.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.g.logger.Warn("two addresses claim one node id: a restart on another port, or two nodes configured alike",
		"member", existing.Name, "known", existing.Address(), "new", other.Address())
}

// AckPayload implements memberlist.PingDelegate.
func (delegate) AckPayload() []byte { return nil }

// NotifyPingComplete implements memberlist.PingDelegate.
func (d delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, _ []byte) {
	if m, err := decodeMember(n.Meta); err == nil {
		d.g.answered(m.Peer, time.Now())
	}
}

// admit refuses members whose metadata we cannot read and members of another
// cluster.
func (g *Gossip) admit(n *memberlist.Node) error {
	m, err := decodeMember(n.Meta)
	if err != nil {
		return err
	}
	if string(m.Node) != n.Name {
		return fmt.Errorf("member %q calls itself %s", n.Name, m.Peer)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.self.ClusterID != "" && m.ClusterID != "" && m.ClusterID != g.self.ClusterID {
		return fmt.Errorf("node %s is of cluster %s, this one is of %s: correct the seeds", m.Node, m.ClusterID, g.self.ClusterID)
	}
	if _, known := g.members[m.Node]; !known && len(g.members) >= membersMax {
		return fmt.Errorf("node %s is one more than %d members", m.Node, membersMax)
	}
	return nil
}

// learn takes over what memberlist says of a node.
func (g *Gossip) learn(n *memberlist.Node, s State) {
	said, err := decodeMember(n.Meta)
	if err != nil {
		return // refused by admit, which has said so
	}
	said.State = s
	g.mu.Lock()
	defer g.mu.Unlock()
	if said.Node == g.self.Node {
		return
	}
	m, ok := g.members[said.Node]
	if !ok {
		m = &member{}
		g.members[said.Node] = m
	}
	if ok && m.Peer != said.Peer && len(g.former) < membersMax {
		gone := m.Member
		gone.State = Dead
		g.former = append(g.former, gone)
	}
	m.Member = said
	m.addr = net.UDPAddr{IP: append(net.IP(nil), n.Addr...), Port: int(n.Port)}
	m.heard, m.lost, m.urgent = time.Now(), 0, false
	g.touch(m)
}

// touch hands a member to the reporter; g.mu is held.
func (g *Gossip) touch(m *member) {
	g.changed[m.Node] = true
	rouse(g.wake)
}
