package poll

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pair(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

func poller(t *testing.T) *Poller {
	t.Helper()
	p, err := New()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("no epoll on this system")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func socket(t *testing.T, p *Poller, nc *net.TCPConn) (*Socket, chan struct{}) {
	t.Helper()
	woken := make(chan struct{}, 100)
	s, err := p.Socket(nc, func() { woken <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	return s, woken
}

func wait(t *testing.T, woken chan struct{}) {
	t.Helper()
	select {
	case <-woken:
	case <-time.After(20 * time.Second):
		t.Fatal("not woken within 20 s")
	}
}

func write(t *testing.T, nc net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(nc, s); err != nil {
		t.Fatal(err)
	}
}

func TestReadyOncePerArm(t *testing.T) {
	here, there := pair(t)
	s, woken := socket(t, poller(t), here)
	buf := make([]byte, 10)
	for range 3 {
		if _, err := s.TryRead(buf); !errors.Is(err, ErrWouldBlock) {
			t.Fatalf("read of an empty socket: %v", err)
		}
		if err := s.Arm(); err != nil {
			t.Fatal(err)
		}
		write(t, there, "x")
		wait(t, woken)
		write(t, there, "y") // not armed: nobody is woken
		for got := ""; got != "xy"; {
			n, err := s.TryRead(buf)
			if err != nil && !errors.Is(err, ErrWouldBlock) {
				t.Fatal(err)
			}
			got += string(buf[:n])
		}
	}
	if n := len(woken); n != 0 {
		t.Errorf("woken %d times more than armed", n)
	}
}

func TestWhatWasThereBeforeArmWakes(t *testing.T) {
	here, there := pair(t)
	s, woken := socket(t, poller(t), here)
	write(t, there, "x")
	if err := s.Arm(); err != nil {
		t.Fatal(err)
	}
	wait(t, woken)
}

func TestEndOfTheConnectionWakes(t *testing.T) {
	here, there := pair(t)
	s, woken := socket(t, poller(t), here)
	if err := s.Arm(); err != nil {
		t.Fatal(err)
	}
	there.Close()
	wait(t, woken)
	if _, err := s.TryRead(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want EOF", err)
	}
}

func TestDeadlineAndCloseReachTryReadAndArm(t *testing.T) {
	here, _ := pair(t)
	s, _ := socket(t, poller(t), here)
	if err := here.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.TryRead(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("deadline over: got %v", err)
	}
	here.Close()
	if err := s.Arm(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Arm of a closed connection: got %v", err)
	}
	if _, err := s.TryRead(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("TryRead of a closed connection: got %v", err)
	}
}

func TestClosedPollerArmsNobody(t *testing.T) {
	here, _ := pair(t)
	p := poller(t)
	s, _ := socket(t, p, here)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Arm(); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestManySocketsAreWokenAndNumbersAreReused(t *testing.T) {
	p := poller(t)
	for range 3 {
		var all []chan struct{}
		for range 100 {
			here, there := pair(t)
			s, woken := socket(t, p, here)
			if err := s.Arm(); err != nil {
				t.Fatal(err)
			}
			write(t, there, "x")
			all = append(all, woken)
			defer here.Close()
			defer there.Close()
		}
		for _, woken := range all {
			wait(t, woken)
		}
	}
}
