package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
)

func TestCallReachesHandlerAndErrorsTravel(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	b.Handle(64, func(from string, group uint32, body []byte, reply func([]byte, error)) {
		if from != peerID(0) || group != 7 {
			reply(nil, errors.New("wrong caller"))
			return
		}
		if string(body) == "bad" {
			reply(nil, errors.New("no such thing"))
			return
		}
		reply(append([]byte("re: "), body...), nil)
	})
	got, err := a.Call(testContext(t), peerID(1), 64, 7, []byte("hello"))
	if err != nil || string(got) != "re: hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	_, err = a.Call(testContext(t), peerID(1), 64, 7, []byte("bad"))
	if remote := (*RemoteError)(nil); !errors.As(err, &remote) || remote.Text != "no such thing" {
		t.Errorf("handler's error arrived as %v", err)
	}
	if _, err = a.Call(testContext(t), peerID(1), 65, 7, nil); !errors.Is(err, ErrNoHandler) {
		t.Errorf("kind without handler: %v", err)
	}
	if _, err = a.Call(testContext(t), "n9.00000009", 64, 7, nil); !errors.Is(err, ErrNotConnected) {
		t.Errorf("unknown peer: %v", err)
	}
	a.Handle(66, echo)
	if got, err := a.Call(testContext(t), a.Self(), 66, 0, []byte("self")); err != nil || string(got) != "self" {
		t.Errorf("call to ourselves: %q, %v", got, err)
	}
}

func TestCallGivesUpWithItsContext(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	got := make(chan func([]byte, error), 1)
	b.Handle(64, func(_ string, _ uint32, _ []byte, reply func([]byte, error)) { got <- reply })
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		reply := <-got
		cancel()
		defer reply(nil, nil)
		reply(nil, nil)
	}()
	if _, err := a.Call(ctx, peerID(1), 64, 0, nil); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the call to be forgotten", func() bool {
		c := a.connected(peerID(1))
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.calls) == 0
	})
}

func TestBodiesOfAllSizesArriveWhole(t *testing.T) {
	d := newDirectory()
	roomy := func(c *Config) { c.FrameBytesMax, c.BulkPendingBytes = 4<<20, 16<<20 } // all bodies may wait at once
	a, b := newTestMux(t, d, peerID(0), roomy), newTestMux(t, d, peerID(1), roomy)
	b.Handle(64, echo)
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	sizes := []int{0, 1, 100, 228, 229, 4000, gatherBytesMax, readBufferBytes - headerBytes, readBufferBytes - headerBytes + 1, 300 << 10, 1<<20 + 64<<10, 4<<20 - headerBytes}
	for i, n := range append(sizes, sizes...) {
		wg.Add(1)
		body := bytes.Repeat([]byte{byte(i + 1)}, n)
		a.Go(peerID(1), 64, 0, body, func(resp []byte, err error) {
			defer wg.Done()
			if err != nil || !bytes.Equal(resp, bytes.Repeat([]byte{byte(i + 1)}, n)) {
				errs <- fmt.Errorf("%d bytes: %d came back, %w", n, len(resp), err)
			}
		})
		clear(body) // ours again
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if _, err := a.Call(testContext(t), peerID(1), 64, 0, make([]byte, 4<<20)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("frame beyond the bound: %v", err)
	}
}
