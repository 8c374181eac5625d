// Package session is the replicated half of the MQTT broker: the sessions of
// clients, the messages that wait for them, retained messages and wills of one
// shard, as a pure state machine. It also has the two leaves that every part of
// the broker shares: Message and Index.
//
// # What it owns
//
// Nothing outside its own memory: no goroutine, clock, file or socket. A State
// changes only by Apply, whose entries carry the leader's clock; equal entries in
// equal order give equal states, byte for byte (Append), on every replica.
//
// # Invariants
//
//   - A session has one owner: the last Connect raised its epoch, and every
//     operation that carries another epoch is refused (StatusFenced). No two
//     sessions of a shard ever have the same epoch, nor two publishes of QoS 2 the
//     same number, whatever has ended meanwhile.
//   - A message in a durable session's queue stays until it is acknowledged,
//     expires, or the session ends; one that does not fit is counted, never
//     dropped in silence. Numbers of a queue ascend without gaps.
//   - The packet id of a queued message follows from its number, so that every
//     node that ever holds the session uses the same one.
//   - A batch of an origin node is applied once: a repeat is answered with the
//     first answer.
//   - A will is due once, and stays due until it is reported as sent.
//
// # Concurrency and failure
//
// Nothing here is safe for concurrent use; the owner of the shard's log holds its
// lock. Apply never panics on hostile input: an entry that cannot be decoded
// changes nothing but is remembered as answered. Strings and payloads of a State
// are its own, they do not alias the entry.
//
// FORMAT.md has the bytes, DESIGN.md the reasons.
//
//	st := session.New()
//	answer := st.Apply(entry)         // on every replica
//	for _, e := range st.TakeEffects() { ... } // on the leader only
package session
