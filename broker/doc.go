// Package broker is a node's embedded MQTT broker (3.1, 3.1.1 and 5). Its one
// promise: a PUBACK, PUBREC or PUBCOMP for telemetry leaves the node only after the
// ingest path has said that the message is durable.
//
// Telemetry, devices/{id}/telemetry and gateways/{id}/telemetry, is validated here,
// handed to an Ingest, and answered in publish order when its result arrives, in
// whatever order results arrive. Everything else is ordinary publish and subscribe
// among the clients of all nodes; so are subscriptions to telemetry topics, which get
// a message after its commit. Who wants what, sessions, retained messages and wills
// are a Cluster's to know and keep: the node holds of a session what its connected
// client needs.
//
// # What it owns
//
// The listeners (TCP, TLS, WebSocket, behind a PROXY protocol), a poller, one goroutine
// per connection that reads (none while it is idle), at most one
// pump goroutine per connection while there is something to write, and a timer per
// idle connection with a keep-alive. The library
// mochi-mqtt decodes packets; everything else is handled here.
//
// # Invariants
//
//   - acks leave a connection in the order of its publishes, each after its result;
//   - a success ack means that every message of the publish is durable, a negative
//     one that none is and none will be; anything else is never answered, and the
//     connection closes when the commit deadline is over;
//   - in flight per connection <= Window; over all <= InFlightBytesMax bytes (plus one
//     publish); read and waiting <= WaitBytesMax + one packet per connection;
//   - Ingest and the socket are never called with a lock held, and a result is taken
//     without waiting for anybody;
//   - what happens to one client id here happens under its gate, one thing at a time;
//   - a publish is answered when subscribers have it or it is safe for them; telemetry does not
//     wait for the shards of subscribers that are out of reach.
//
// # Back-pressure
//
// An MQTT 5 client is told the window and closed with 0x93 when it ignores it. A
// 3.1.1 client cannot know it: publishes beyond it wait, and pings, acks and
// DISCONNECT are still read and answered until WaitBytesMax bytes wait; then the
// connection is not read.
//
// # What it does not do
//
// It parses no payload, knows no shard and keeps nothing on disk. A subscriber that
// does not read loses messages of QoS 0 (counted) and is cut off when too many others
// wait for it; a publisher never waits for it.
//
// # Failure
//
// Close and a crash leave publishes unanswered, which MQTT clients send again, with
// DUP set; the ingest path sees that in Publish.Dup. All methods are safe for
// concurrent use.
//
//	b, err := broker.New(logger, reg, broker.Config{Listen: "127.0.0.1:1883"}, ingest, cluster)
//	if err != nil { return err }
//	if err := b.Start(ctx); err != nil { return err }
//	...
//	err = b.Drain(ctx) // answers what is in flight, says good-bye
//	err = b.Close()
package broker
