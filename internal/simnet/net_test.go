package simnet

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// connect gives both ends of a connection from b to a.
func connect(t *testing.T, n *Net) (a, b net.Conn) {
	t.Helper()
	l := n.Listen("a")
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	b, err := n.Dial("b")(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	return <-accepted, b
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c net.Conn, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBlockedLinkHoldsWhatIsWrittenUntilItIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(nil)
		a, b := connect(t, n)
		n.Block("a", "b")
		write(t, a, "held")
		write(t, b, "through")
		if got := read(t, a, 7); got != "through" {
			t.Errorf("the other direction carried %q", got)
		}
		if err := b.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read of a blocked link: %v, want a deadline", err)
		}
		if err := b.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Hour, func() { n.Release("a", "b") })
		began := time.Now()
		if got := read(t, b, 4); got != "held" || time.Since(began) != time.Hour {
			t.Errorf("%q after %v, want it at the release", got, time.Since(began))
		}
		_, _ = a.Close(), b.Close()
	})
}

func TestDelayKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(rand.New(rand.NewPCG(1, 1)))
		a, b := connect(t, n)
		n.Delay(10*time.Millisecond, 90*time.Millisecond)
		began := time.Now()
		for _, s := range []string{"a", "b", "c", "d", "e", "f"} {
			write(t, a, s)
		}
		if got := read(t, b, 6); got != "abcdef" {
			t.Errorf("got %q", got)
		}
		if d := time.Since(began); d < 10*time.Millisecond || d > 90*time.Millisecond {
			t.Errorf("arrived after %v", d)
		}
		_, _ = a.Close(), b.Close()
	})
}

func TestHostGoesDownWithAResetOrInSilence(t *testing.T) {
	for _, reset := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := New(nil)
			a, b := connect(t, n)
			n.Down("a", reset)
			if err := b.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				t.Fatal(err)
			}
			want := os.ErrDeadlineExceeded
			if reset {
				want = syscall.ECONNRESET
			}
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, want) {
				t.Errorf("reset %v: read %v, want %v", reset, err, want)
			}
			if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("a host that is down writes: %v", err)
			}
			if _, err := n.Dial("b")(t.Context(), "a"); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial: %v, want refused", err)
			}
			_ = b.Close()
		})
	}
}

func TestWriterWaitsForRoomAndDialForTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(nil)
		a, b := connect(t, n)
		n.Split([]string{"a"}, []string{"b"})
		if err := a.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if k, err := a.Write(make([]byte, 3*windowBytes)); !errors.Is(err, os.ErrDeadlineExceeded) || k != windowBytes {
			t.Errorf("wrote %d, %v", k, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Dial("b")(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial over a blocked link: %v", err)
		}
		n.Heal()
		if got := read(t, b, windowBytes); len(got) != windowBytes {
			t.Errorf("%d bytes", len(got))
		}
		_ = a.Close()
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read behind the end: %v", err)
		}
		_ = b.Close()
	})
}

func TestPortsOfAHostShareItsLinksAndDatagramsAreLostOnABlockedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(nil)
		packets := n.Packets("10.0.0.1:7401")
		n.Send("10.0.0.2:7401", "10.0.0.1:7401", []byte("hello"))
		if p := <-packets; p.From != "10.0.0.2:7401" || string(p.Data) != "hello" {
			t.Errorf("got %q of %s", p.Data, p.From)
		}
		n.Block("10.0.0.2", "10.0.0.1")
		n.Send("10.0.0.2:7401", "10.0.0.1:7401", []byte("lost"))
		n.Listen("10.0.0.1:80")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Dial("10.0.0.2")(ctx, "10.0.0.1:80"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial over a blocked link: %v", err)
		}
		n.Heal()
		n.Down("10.0.0.1", true)
		n.Send("10.0.0.2:7401", "10.0.0.1:7401", []byte("nobody"))
		synctest.Wait()
		if _, err := n.Dial("10.0.0.2")(t.Context(), "10.0.0.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial to a host that is down: %v", err)
		}
		select {
		case p := <-packets:
			t.Errorf("got %q", p.Data)
		default:
		}
	})
}
