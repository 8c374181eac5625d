// Package faults shows that what was acknowledged is not lost. It starts a
// cluster of real processes, drives it with clients that keep a ledger of their
// acknowledgements and outlive the nodes, lets one fault of a table strike,
// heals it, and compares what the cluster holds with the ledger.
//
// # What it owns
//
// Everything below Config.Dir: the nodes' processes and directories, their
// power-loss disks (bench/faults/disk), a PostgreSQL server where the fault is
// about one, and the histories of runs that failed.
//
// # Checks
//
//	C1  acknowledged is a subset of stored, through every node
//	C2  nothing is stored that was not sent, with the values it was sent with
//	C3  no reading is stored twice
//	C4  a device's messages are in the log in the order they were sent, and logs
//	    agree on every committed entry
//	C5  the states of all replicas of a shard are equal at the same index
//	C6  a read that begins after an acknowledgement shows what was acknowledged,
//	    whichever node is asked, and compare-and-set of device attributes is
//	    linearizable
//	C7  the rate of acknowledgements is back at 90 %; the table has the time,
//	    only a minute is asserted, because a busy machine is no fault of ours
//	C8  goroutines, descriptors and memory return to what they were
//	C9  the log applied again, without a fault, gives the states that the replicas
//	    have and the scores that are stored
//	C10 the metric that docs/operations.md names for the fault has moved
//	C11 no command of QoS 1 that was acknowledged is lost, none comes to another
//	    device, none overtakes an earlier one, and no durable session is gone
//	C12 subscriptions were made and dropped on every node while the fault lasted;
//	    afterwards a publish through any node reaches exactly the subscribers there
//	    are, once each, and no node keeps a route that nobody has asked for (but
//	    with --no-routes; the tests leave it out, which run beside others)
//
// # Determinism
//
// What is drawn follows from the seed; when it strikes among the messages is the
// machine's. A run that fails is judged again from its history, see Judge, and
// found again by its seed or not at all: the simulation in shard is where a
// schedule can be repeated.
//
// # What it does not do
//
// It asserts no speed. It does not measure throughput (package bench does), and
// nothing of it is linked into the product.
//
// # Example
//
//	res, err := faults.Do(ctx, faults.Config{Binary: "bin/sluice", Dir: dir, Seed: 7, Load: faults.DefaultLoad}, faults.All()[0])
//	faults.Table(os.Stdout, []faults.Result{res})
package faults
