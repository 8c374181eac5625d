package zones

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func network(t *testing.T, count int) *Net {
	t.Helper()
	n, err := New(count)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// listen answers every connection at an address of this process with a word.
func listen(t *testing.T, n *Net) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(n.Host(Outside), "0"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

func reach(t *testing.T, n *Net, zone int, addr string, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	c, err := n.Dial(ctx, zone, "tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	b, err := io.ReadAll(c)
	if err == nil && string(b) != "hello" {
		err = fmt.Errorf("read %q", b)
	}
	return err
}

func TestZonesReachEachOtherUnlessTheyAreCut(t *testing.T) {
	n := network(t, 2)
	addr := listen(t, n)
	if err := reach(t, n, 0, addr, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	n.Cut(Outside, 0)
	if err := reach(t, n, 0, addr, 500*time.Millisecond); err == nil {
		t.Error("a connection crossed a cut")
	}
	if err := reach(t, n, 1, addr, 20*time.Second); err != nil {
		t.Errorf("the other zone: %v", err)
	}
	if n.Dropped() == 0 {
		t.Error("nothing was dropped")
	}
	n.Join(Outside, 0)
	if err := reach(t, n, 0, addr, 20*time.Second); err != nil {
		t.Errorf("after the cut: %v", err)
	}
}

func TestCommandsRunInTheirZone(t *testing.T) {
	n := network(t, 1)
	args := append(n.Prefix(0), "ip", "addr")
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), n.Host(0)) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestRoughLinksDelayAndLose(t *testing.T) {
	n := network(t, 1)
	n.rules.loss, n.rules.min, n.rules.max = 0.5, time.Millisecond, 2*time.Millisecond
	lost := 0
	for range 1000 {
		if d, ok := n.rules.verdict(0, 0); !ok {
			lost++
		} else if d < time.Millisecond || d > 2*time.Millisecond {
			t.Fatalf("delay %v", d)
		}
	}
	if lost < 400 || lost > 600 {
		t.Errorf("%d of 1000 lost, want about half", lost)
	}
}
