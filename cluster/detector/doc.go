// Package detector says when a peer is gone, soon and rarely wrongly: when two
// independent signals agree within a window. Its word starts elections without
// waiting for raft's timers, so a false one costs an election and a late one
// costs availability; raft stays correct either way.
//
// Signals come from two sources that do not share a socket: the mux (connection
// reset, redial refused, ping not answered) and gossip (suspect, dead). A peer is
// down when one of these pairs is there:
//
//	reset   + refused     the kernel of its machine says twice that nobody is there
//	reset   + suspect     the connection broke and UDP is silent too
//	silent  + suspect     neither TCP nor UDP gets an answer: power, cable, partition
//	unreach + suspect     the same, sooner: the kernel of its machine answers no connect
//	refused + suspect     nobody listens, and UDP is silent
//
// Silent and reset do not agree with each other: the mux closes a silent
// connection itself. A peer is up again when the mux has a connection to it, or
// when gossip hears it while the mux has nothing against it.
//
// # Invariants
//
//   - Down and Up alternate for each peer, Down first.
//   - While our own ticker is late it is this process that stands still. Then
//     silence is void, and resets and suspicions wait for a moment in which the
//     peer may show that it is there. A refusal needs no such care.
//
// The mux does not say why a redial failed, so after a reset the detector knocks
// itself: it connects to the peer's address and hangs up. A refusal there is the
// signal. It also knocks when the mux finds a peer quiet: a process that is busy or
// stands still has a kernel that answers, and then nothing follows but what silence
// itself says later; where four connects stay without any answer, the machine is
// off or the way to it is cut, and there is no use in waiting.
//
// The core is pure, with the time passed in; around it is one goroutine, which
// also calls the subscribers, and a short-lived one per door knocked at. Observe
// never blocks: when its queue is full, signals are dropped and counted, and
// raft's timers remain.
//
//	d, err := detector.New(logger, reg, detector.DefaultConfig(), gossip)
//	defer d.Close()
//	d.Subscribe(func(e detector.Event) {
//		if e.Down {
//			meta.LeaderDown(e.Peer)
//		}
//	})
//	d.Observe(peer, detector.Reset)
package detector
