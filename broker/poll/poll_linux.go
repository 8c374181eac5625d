package poll

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// eventsMax is how many sockets one system call reports.
const eventsMax = 256

// Poller waits for all its sockets.
type Poller struct {
	epoll, stop int
	done        chan struct{}

	mu      sync.RWMutex
	sockets []*Socket // by descriptor; grows to the highest number in use
	closed  bool
}

// Socket is one TCP connection known to a Poller.
type Socket struct {
	poller *Poller
	raw    syscall.RawConn
	ready  func()
	fd     int  // once added
	added  bool // guarded by whoever calls Arm and Forget: one at a time
}

// New starts a poller.
func New() (*Poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll instance: %w", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create eventfd: %w", err), unix.Close(epoll))
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(stop)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, stop, &event); err != nil {
		return nil, errors.Join(fmt.Errorf("watch eventfd: %w", err), unix.Close(stop), unix.Close(epoll))
	}
	p := &Poller{epoll: epoll, stop: stop, done: make(chan struct{})}
	go p.run()
	return p, nil
}

// Socket makes nc one that can be armed. ready is called as Arm says.
func (p *Poller) Socket(nc *net.TCPConn, ready func()) (*Socket, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reach descriptor: %w", err)
	}
	return &Socket{poller: p, raw: raw, ready: ready}, nil
}

// TryRead reads what is there, ErrWouldBlock when nothing is, io.EOF at the end. The
// connection's read deadline applies: one that is over is an error.
func (s *Socket) TryRead(b []byte) (int, error) {
	var n int
	var err error
	if rerr := s.raw.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Read(int(fd), b); err != unix.EINTR {
				return true
			}
		}
	}); rerr != nil {
		return 0, rerr
	}
	switch {
	case err == unix.EAGAIN:
		return 0, ErrWouldBlock
	case err != nil:
		return 0, fmt.Errorf("read: %w", err)
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// Arm asks for one call of ready when there is something to read, or the end, or an
// error. It does not block; ready may run before it returns.
func (s *Socket) Arm() error {
	var err error
	if rerr := s.raw.Control(func(fd uintptr) { err = s.poller.arm(s, int(fd)) }); rerr != nil {
		return rerr
	}
	return err
}

func (p *Poller) arm(s *Socket, fd int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	for fd >= len(p.sockets) {
		p.sockets = append(p.sockets, make([]*Socket, max(64, len(p.sockets)/4))...)
	}
	p.sockets[fd] = s
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(fd)}
	op := unix.EPOLL_CTL_ADD
	if s.added {
		op = unix.EPOLL_CTL_MOD
	}
	if err := unix.EpollCtl(p.epoll, op, fd, &event); err != nil {
		return fmt.Errorf("watch descriptor: %w", err)
	}
	s.fd, s.added = fd, true
	return nil
}

// Forget drops the poller's reference to s; call it when the connection ends.
func (s *Socket) Forget() {
	if !s.added {
		return
	}
	s.poller.mu.Lock()
	defer s.poller.mu.Unlock()
	if s.poller.sockets[s.fd] == s {
		s.poller.sockets[s.fd] = nil
	}
}

func (p *Poller) run() {
	defer close(p.done)
	events := make([]unix.EpollEvent, eventsMax)
	for {
		n, err := unix.EpollWait(p.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return // the descriptor is gone: nobody but Close takes it
		}
		for _, e := range events[:n] {
			if int(e.Fd) == p.stop {
				return
			}
			p.mu.RLock()
			s := p.sockets[e.Fd]
			p.mu.RUnlock()
			if s != nil {
				s.ready()
			}
		}
	}
}

// Close ends the goroutine. Sockets stay open and are not reported any more.
func (p *Poller) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	if _, err := unix.Write(p.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return fmt.Errorf("stop poller: %w", err)
	}
	<-p.done
	return errors.Join(unix.Close(p.epoll), unix.Close(p.stop))
}
