// Package poll wakes whoever waits for a socket to become readable, without a
// goroutine for each of them: one epoll instance and one goroutine for all.
//
// It owns the epoll descriptor, an eventfd that ends it, and the goroutine. It owns
// no socket: those stay with net, whose own poller goes on working beside this one.
//
// # Invariants
//
//   - Ready is called at most once per Arm, and never without one that is not used up;
//     a call may come for nothing, because a descriptor's number is used again.
//   - Nothing is read or written but what TryRead is asked to read.
//   - A closed socket is forgotten by the kernel, and by the poller after Forget.
//
// Ready runs on the poller's goroutine and must not block. All methods may be called
// from any goroutine. Only Linux has it; elsewhere New answers errors.ErrUnsupported
// and connections keep their goroutines.
//
//	p, err := poll.New()
//	s, err := p.Socket(tcpConn, func() { go serve() })
//	n, err := s.TryRead(buf)                    // poll.ErrWouldBlock: nothing there
//	err = s.Arm()                               // serve is started when there is
package poll

import "errors"

// ErrWouldBlock says that there is nothing to read right now.
var ErrWouldBlock = errors.New("nothing to read")

// ErrClosed answers Arm after Close of the poller.
var ErrClosed = errors.New("poller is closed")
