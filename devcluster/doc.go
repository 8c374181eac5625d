// Package devcluster runs a cluster of real node processes on loopback: what
// `sluice dev` shows to a newcomer, and what the tests kill, pause and restart.
//
// A Cluster owns one directory (configuration files, one data directory and one
// log file per node, dev.json) and its child processes. A node that dies stays
// dead until somebody starts it again with the command in dev.json; Stop ends
// such a node too. Node i listens on MQTTPort+i and HTTPPort+i; the ports
// between nodes are free ones, chosen at each start, which no other cluster is given.
//
// It initialises a cluster that has no identity yet, and continues one that has.
// It is not a way to run production: all zones are one machine.
//
//	c, err := devcluster.Start(ctx, logger, devcluster.Options{Binary: "bin/sluice", Dir: "data", Nodes: 3, Zones: []string{"a", "b", "c"}, MQTTPort: 1883, HTTPPort: 8080, Shards: 24})
//	defer c.Stop(ctx)
//	err = c.WaitReady(ctx)
//	c.Nodes()[1].Kill()
package devcluster
