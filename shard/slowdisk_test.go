package shard

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-iot/sluice/telemetry"
)

// led counts the shards that a node leads.
func (c *testCluster) led(n *testNode, shards int) (count int) {
	for id := range telemetry.ShardID(shards) {
		if c.leader(id) == n {
			count++
		}
	}
	return count
}

// spread reports whether every node leads as many shards as the others.
func (c *testCluster) spread(shards int) bool {
	for _, n := range c.nodes {
		if c.led(n, shards) != shards/len(c.nodes) {
			return false
		}
	}
	return true
}

// TestNodeWithASlowDiskLeadsNothing, and leads again when its disk has recovered.
func TestNodeWithASlowDiskLeadsNothing(t *testing.T) {
	const shards = 6
	c := newTestCluster(t, 3, shards)
	p := c.publisher(0)
	p.publish(5)
	led := func(n *testNode) int { return c.led(n, shards) }
	spread := func() bool { return c.spread(shards) }
	eventually(t, "every node leads its share", spread)
	slow := c.nodes[0]
	slow.slowDisk.Store(true)
	eventually(t, "the others lead all", func() bool {
		return led(slow) == 0 && led(c.nodes[1])+led(c.nodes[2]) == shards
	})
	p.publish(5)
	time.Sleep(balanceEvery + balanceEvery/2) // a look that must not hand anything to it
	if n := led(slow); n != 0 {
		t.Errorf("a node with a slow disk leads %d shards again", n)
	}
	slow.slowDisk.Store(false)
	eventually(t, "every node leads its share again", spread)
	p.publish(5)
	p.check(slow)
}

// TestLeadershipsStayWhereAllDisksAreSlow: there is nobody better.
func TestLeadershipsStayWhereAllDisksAreSlow(t *testing.T) {
	c := newTestCluster(t, 3, 3)
	p := c.publisher(0)
	p.publish(5)
	eventually(t, "every node leads its share", func() bool { return c.spread(3) })
	for _, n := range c.nodes {
		n.slowDisk.Store(true)
	}
	for _, n := range c.nodes {
		eventually(t, "the node knows", n.host.slow.Load)
	}
	handed := func() (sum float64) {
		for _, n := range c.nodes {
			sum += testutil.ToFloat64(n.host.metrics.handOvers)
		}
		return sum
	}
	eventually(t, "nobody hands anything to another node with a slow disk", func() bool {
		before := handed() // one may have been under way
		time.Sleep(balanceEvery + balanceEvery/2)
		return handed() == before
	})
	p.publish(5)
}

// TestShardWhoseRowsHaveRottedIsLedElsewhere until they are back.
func TestShardWhoseRowsHaveRottedIsLedElsewhere(t *testing.T) {
	const shards = 3
	c := newTestCluster(t, 3, shards)
	p := c.publisher(0)
	p.publish(5)
	eventually(t, "every node leads its share", func() bool { return c.spread(shards) })
	rotten := c.nodes[0]
	rotten.rottenRows.Store(true)
	eventually(t, "the others lead all", func() bool {
		return c.led(rotten, shards) == 0 && c.led(c.nodes[1], shards)+c.led(c.nodes[2], shards) == shards
	})
	p.publish(5)
	c.voters(c.peers()...)
	rotten.rottenRows.Store(false)
	eventually(t, "every node leads its share again", func() bool { return c.spread(shards) })
	p.check(rotten)
}
