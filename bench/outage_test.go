package bench

import (
	"bufio"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"
)

// TestCutServerIsGoneUntilItIsGivenBack: open connections end, new ones fail,
// and later ones work again.
func TestCutServerIsGoneUntilItIsGivenBack(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	c, err := newCut(server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", c.addr())
		if err == nil {
			err = conn.SetDeadline(time.Now().Add(time.Minute))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	echoes := func(conn net.Conn) error {
		if _, err := conn.Write([]byte("there?\n")); err != nil {
			return err
		}
		got, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && got != "there?\n" {
			err = errors.New("got " + got)
		}
		return err
	}
	before := dial()
	if err := echoes(before); err != nil {
		t.Fatalf("through the relay: %v", err)
	}
	c.set(true)
	if err := echoes(before); err == nil {
		t.Error("an open connection outlives the cut")
	}
	if err := echoes(dial()); err == nil {
		t.Error("a new connection reaches the server while it is away")
	}
	c.set(false)
	if err := echoes(dial()); err != nil {
		t.Errorf("the server is back: %v", err)
	}
	if err := c.close(); err != nil {
		t.Error(err)
	}
}

func TestTrendIsTheSlopeOfTheSecondHalf(t *testing.T) {
	var tr Trend
	for i := range 100 {
		mib := 50 + float64(i) // fills
		if i >= 50 {
			mib = 100 + float64(i-50)*2/3600
		}
		tr.add(time.Duration(i)*time.Second, mib)
	}
	tr.fit()
	if math.Abs(tr.MiBPerHour-2) > 0.01 || tr.First != 50 || tr.Last < 100 || tr.Most < tr.Last {
		t.Errorf("got %+v, want 2 MiB per hour", tr)
	}
	var none Trend
	none.fit()
}

func TestOutageNeedsAnAddressOfADatabase(t *testing.T) {
	for _, url := range []string{"", "mysql://h/d", "postgres:///d", ":"} {
		if _, err := RunOutage(t.Context(), OutageConfig{Database: url}); err == nil || !strings.Contains(err.Error(), "postgres://") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
