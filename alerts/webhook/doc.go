// Package webhook tells another system of anomalies: one HTTP POST per event,
// signed, repeated until it is taken, and written to a file of dead letters when
// it is not.
//
// A Sender owns one goroutine and one file. Send never blocks: it puts an event
// into a queue of queueMax; what does not fit is a dead letter at once, so that
// a receiver that is away costs the node a bounded amount of memory and no
// event is lost silently. Events go out in the order of Send; one that is being
// repeated holds back those behind it, because a close must not overtake its
// opening.
//
// A receiver gets POST with the JSON of Event and
//
//	X-Sluice-Event      id of the anomaly, what happened, number of the change: a repeat has the same
//	X-Sluice-Timestamp  seconds of the epoch at the attempt
//	X-Sluice-Signature  "sha256=" and the hex HMAC-SHA256 of timestamp, ".", body
//
// and answers any 2xx. 408, 425, 429, 5xx and no answer are tried again with growing
// pauses; other answers are final. Delivery is at least once: an event with Done
// is kept by its shard until it is taken or a dead letter, and a node that leads
// the shard after this one sends it again.
//
//	s, err := webhook.New(logger, reg, webhook.Config{URL: url, Secret: secret, DeadLetters: path})
//	s.Send(webhook.Event{Kind: "opened", ID: a.ID, ...})
package webhook
