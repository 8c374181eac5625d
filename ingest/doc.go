// Package ingest is the one path that telemetry takes into the log, whether it
// came by MQTT or by HTTP: parse once, place every message on its shard, gather
// a columnar block per shard, send it to the shard's leader, and tell the
// publisher what became of it.
//
// It owns one queue per shard, with the block being gathered, the blocks that
// are sealed and not answered yet, and a timer. It owns no connection and no
// file; the goroutines it runs on are its callers' and the router's.
//
// Invariants:
//
//   - The blocks of one (origin, epoch, shard) are numbered 1, 2, 3 ... and are
//     sent in that order; after any error all unanswered blocks are sent again
//     in that order, until they are answered. The state machine drops repeats
//     and refuses gaps, so a block is applied once and never overtakes another.
//   - A publish is reported exactly once, when the last of its messages has an
//     outcome. Unknown is reported only when the shard cannot say any more
//     whether it has the block, or when Close gives up; an outage alone leaves the
//     publish open, and the front end decides how long its client waits.
//   - Memory is bounded: what is open counts against Config.BytesOpenMax, and
//     a publish beyond it is refused before anything is proposed.
//
// It does not authenticate, does not limit rates, and stores nothing.
//
//	p, err := ingest.New(logger, reg, ingest.Config{Origin: peer, Epoch: epoch, Shards: 24}, router)
//	p.Publish(&telemetry.Publish{Device: "d1", Payload: body, Received: now}, func(r telemetry.Result) {
//		// acknowledge, unless r.Unknown > 0
//	})
//	err = p.Drain(ctx)
package ingest
