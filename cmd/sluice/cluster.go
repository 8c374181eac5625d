package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/telemetry"
)

type clusterCmd struct {
	Init clusterInitCmd `cmd:"" help:"Create the cluster from the nodes that know each other, once in its life."`
}

type clusterInitCmd struct {
	apiFlag
	Shards   uint32             `default:"64" help:"Number of shards, fixed for the life of the cluster: about 16 to 24 per node."`
	Replicas int                `default:"0" help:"Copies of each shard; 0: 3, or as many as there are nodes."`
	Nodes    []telemetry.NodeID `placeholder:"ID" help:"The first members; default: all that are alive."`
}

// Run implements kong.
func (c *clusterInitCmd) Run(ctx context.Context) error {
	if c.Shards == 0 {
		return errors.New("shards is 0: use at least 1")
	}
	return c.with(func(cl *client.Client) error {
		st, err := cl.Init(ctx, api.InitRequest{Shards: c.Shards, Replicas: c.Replicas, Nodes: c.Nodes})
		if err != nil {
			return err
		}
		fmt.Printf("cluster %s created: %d shards on %d nodes\n", st.ClusterID, len(st.Shards), len(st.Nodes))
		return nil
	})
}

type drainCmd struct {
	apiFlag
	Node   telemetry.NodeID `arg:"" help:"Id of the node."`
	Cancel bool             `help:"Use the node again: it begins to serve within seconds, and is given leaderships and replicas like any other."`
}

// Run implements kong.
func (c *drainCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		if c.Cancel {
			if err := cl.EndDrain(ctx, c.Node); err != nil {
				return err
			}
			fmt.Printf("%s is not to drain: within seconds it takes clients again; leaderships, and replicas that it has given away, come back to it as the cluster is balanced; see sluice status\n", c.Node)
			return nil
		}
		if err := cl.Drain(ctx, c.Node); err != nil {
			return err
		}
		fmt.Printf("%s is draining: it answers what is in flight, lets its clients go and hands its leaders over; its replicas move after ten seconds where other nodes can take them; see sluice status\n", c.Node)
		return nil
	})
}

type nodesCmd struct {
	List  nodesListCmd  `cmd:"" default:"withargs" help:"List the nodes."`
	Evict nodesEvictCmd `cmd:"" help:"Remove a node that is gone, or drained and empty, for ever. Its id is free for an empty data directory."`
}

type nodesEvictCmd struct {
	apiFlag
	Node telemetry.NodeID `arg:"" help:"Id of the node."`
}

// Run implements kong.
func (c *nodesEvictCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		if err := cl.Evict(ctx, c.Node); err != nil {
			return err
		}
		fmt.Printf("%s is evicted: its data directory may not come back, and its replicas move to other nodes where there are any; see sluice status\n", c.Node)
		return nil
	})
}
