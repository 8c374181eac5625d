package broker

import (
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// strayWait is how long a publish must have waited for its connection to be sent
	// elsewhere: what is only late comes sooner.
	strayWait = time.Second
	// strayDeaf is how long a durable session may be out of its shard's reach: then the
	// shard has given up its connection, and queues its messages instead of sending them.
	strayDeaf = 5 * time.Second
)

// codeElsewhere sends a client to another node.
var codeElsewhere = packets.Code{Code: packets.ErrUseAnotherServer.Code, Reason: "this node does not reach the shard of this client, another node does"}

// Strayed implements pubsub.Local: connections end that wait for a shard which only other
// nodes reach, so that their clients go there.
func (b *Broker) Strayed(list []session.Astray) {
	lost := make(map[telemetry.ShardID]time.Duration, len(list))
	for _, a := range list {
		lost[a.Shard] = a.For
	}
	for _, s := range b.sessions.all() {
		s.mu.Lock()
		c := s.conn
		s.mu.Unlock()
		if c == nil {
			continue
		}
		if s.durable && lost[b.cluster.ShardOf(s.id)] >= strayDeaf {
			c.fail(codeElsewhere)
			continue
		}
		c.stray(lost)
	}
}

// stray ends the connection if its oldest publish waits in vain.
func (c *conn) stray(lost map[telemetry.ShardID]time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.fifo.first
	for p != nil && p.settled() {
		p = p.next
	}
	if p == nil || time.Since(p.at) < strayWait || !p.waitsFor(c.b.cluster, lost) {
		return
	}
	c.failLocked(codeElsewhere)
	c.abandonLocked()
}

// settled reports whether p waits for nobody.
func (p *publish) settled() bool { return p.local || p.state == publishRouted }

// waitsFor reports whether one of the shards may be what p waits for. A gateway's publish
// is for any of them; what is not telemetry waits until its node hears all of them, and
// telemetry of QoS 2 that is committed may wait for the shard of its client's session.
func (p *publish) waitsFor(cluster Cluster, lost map[telemetry.ShardID]time.Duration) bool {
	if p.plain || p.Device == "" || p.state >= publishDone {
		return true
	}
	_, ok := lost[cluster.ShardOf(p.Device)]
	return ok
}
