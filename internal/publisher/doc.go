// Package publisher is an MQTT 5 client that only publishes, with QoS 1, and
// does not lose: what it accepted it sends until a broker has answered, over as
// many connections to as many nodes as that takes. The simulator and the
// importer send through it.
//
// It owns two goroutines per Publisher, at most one connection, and every
// payload from Publish until done.
//
// Invariants:
//
//   - at most Config.Window publishes are accepted and not answered; on one
//     connection at most the broker's receive maximum of them are sent;
//   - publishes are sent in the order of Publish, on a new connection again in
//     that order, with DUP set, the same packet id and the same client id: the
//     cluster recognises a repeat by them on any node;
//   - done is called exactly once for each accepted publish, never under a lock;
//   - 0x97 (quota exceeded) means "never committed": the publish is sent again
//     after a pause, as a new one.
//
// A connection is given up when it breaks, when the broker says good-bye, or
// when its oldest publish has no answer for Config.AckTimeout (a paused node
// sends no reset); the next address of Config.Brokers follows.
//
// What it does not do: subscribe, resume sessions (nothing of ours is in them),
// TLS, or keep anything on disk. It has no registry: its users are commands that
// print Stats. Methods are safe for concurrent use.
//
//	p, err := publisher.New(logger, publisher.Config{Brokers: []string{"127.0.0.1:1883"}, ClientID: "pump-7"})
//	if err != nil { return err }
//	err = p.Publish(ctx, "devices/pump-7/telemetry", payload, func(r publisher.Result) { ... })
//	err = p.Flush(ctx) // until all are answered
//	err = p.Close()
package publisher
