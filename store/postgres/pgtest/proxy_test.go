package pgtest

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestProxyLetsEverythingPassAgain after a budget was spent at the very moment in
// which it was lifted.
func TestProxyLetsEverythingPassAgain(t *testing.T) {
	var left atomic.Int64
	const rounds = 200_000
	begun, done := make(chan struct{}), make(chan struct{})
	go func() {
		for range begun {
			take(&left, 20)
			done <- struct{}{}
		}
	}()
	defer close(begun)
	for range rounds {
		left.Store(10)
		begun <- struct{}{}
		left.Store(-1)
		<-done
		if got := take(&left, 5); got != 5 {
			t.Fatalf("%d of 5 bytes may pass", got)
		}
	}
}

func TestProxyCutsAtTheByteThatItWasTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b, _ := io.ReadAll(c) // it ends in a reset
		got <- len(b)
		_ = c.Close()
	}()
	defer func() { _ = l.Close() }()
	p := NewProxy(t, l.Addr().String())
	p.Allow(7, -1)
	c, err := net.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write(make([]byte, 20)); err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-got:
		if n > 7 { // a reset may take away what was not read yet
			t.Errorf("%d bytes arrived, 7 were allowed", n)
		}
	case <-time.After(time.Minute):
		t.Fatal("the connection was not cut")
	}
}
