package mux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func TestPendingCallsFailExactlyOnceWhenThePeerDies(t *testing.T) {
	const calls = 1000
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	var arrived atomic.Int32
	b.Handle(64, func(string, uint32, []byte, func([]byte, error)) { arrived.Add(1) }) // never replies
	var ended, wrong atomic.Int32
	counts := make([]atomic.Int32, calls)
	for i := range calls {
		a.Go(peerID(1), 64, 0, []byte("x"), func(_ []byte, err error) {
			ended.Add(1)
			if counts[i].Add(1) != 1 || !errors.Is(err, ErrConnectionLost) {
				wrong.Add(1)
			}
		})
	}
	eventually(t, "the calls to arrive", func() bool { return arrived.Load() == calls })
	down := eventsOf(a, Down)
	_ = b.Close()
	if e := <-down; e.Peer != peerID(1) || e.Err == nil {
		t.Errorf("event %+v", e)
	}
	eventually(t, "the calls to end", func() bool { return ended.Load() == calls })
	_ = a.Close()
	if n := wrong.Load(); n != 0 || ended.Load() != calls {
		t.Errorf("%d of %d calls ended twice or with another error", n, ended.Load())
	}
}

func TestCallSucceedsSoonAfterThePeerIsBackAtANewAddress(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	b.Handle(64, echo)
	if _, err := a.Call(testContext(t), peerID(1), 64, 0, nil); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		_ = b.Close()
		eventually(t, "the connection to end", func() bool { return !a.Connected(peerID(1)) })
		start := time.Now()
		if _, err := a.Call(testContext(t), peerID(1), 64, 0, nil); !errors.Is(err, ErrNotConnected) {
			t.Fatalf("call to a dead peer: %v", err)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("call to a dead peer failed after %v", d)
		}
		b = newTestMux(t, d, peerID(1))
		b.Handle(64, echo)
		start = time.Now()
		eventually(t, "a call to the restarted peer", func() bool {
			_, err := a.Call(testContext(t), peerID(1), 64, 0, nil)
			return err == nil
		})
		t.Logf("round %d: back after %v", round, time.Since(start))
	}
}

func TestSlowReaderCostsABoundAndThenItsConnection(t *testing.T) {
	d := newDirectory()
	a := newTestMux(t, d, peerID(0), func(c *Config) {
		c.BulkPendingBytes, c.WriteTimeout, c.DeadAfter = 1<<20, 500*time.Millisecond, time.Minute
	})
	b := newTestMux(t, d, peerID(1))
	stuck := make(chan struct{})
	b.Handle(64, func(_ string, _ uint32, _ []byte, reply func([]byte, error)) {
		<-stuck // what a handler must not do
		reply(nil, nil)
	})
	defer close(stuck)
	eventually(t, "a connection", func() bool { a.Connect(peerID(1)); return a.Connected(peerID(1)) })
	c := a.connected(peerID(1))
	body := make([]byte, 100<<10)
	var ended, busy atomic.Int32
	calls := int32(0)
	for ; busy.Load() == 0 && calls < 10000; calls++ {
		a.Go(peerID(1), 64, 0, body, func(_ []byte, err error) {
			ended.Add(1)
			if errors.Is(err, ErrBusy) {
				busy.Add(1)
			}
		})
		c.mu.Lock()
		if n := c.queues[classBulk].bytes; n > 1<<20 {
			t.Errorf("%d bytes wait", n)
		}
		c.mu.Unlock()
	}
	if busy.Load() == 0 {
		t.Error("nobody was told that the queue is full")
	}
	eventually(t, "the stalled write to end the connection", func() bool { return ended.Load() == calls })
}

// pipeConn is a connection of m to n1 over a pipe whose other end the test holds.
func pipeConn(t testing.TB, m *Mux, dialed bool) (*conn, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	var owner *peer
	if dialed {
		owner = &peer{m: m, id: peerID(1)}
	}
	c := newConn(m, ours, owner, peerID(1), "")
	t.Cleanup(func() { c.fail(ErrClosed) })
	return c, theirs
}

// readRaw reads a frame off the test's end.
func readRaw(t testing.TB, r io.Reader) (header, []byte) {
	t.Helper()
	head := make([]byte, headerBytes)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	n, err := frameLength(head, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseHeader(head)
	if err != nil {
		t.Fatal(err)
	}
	body := make([]byte, n-headerBytes)
	if _, err := io.ReadFull(r, body); err != nil {
		t.Fatal(err)
	}
	if err := checkFrame(head, body); err != nil {
		t.Fatal(err)
	}
	return h, body
}

// rawFrame encodes a frame.
func rawFrame(h header, body []byte) []byte {
	f := new(framePools).get(len(body))
	f.buf = append(f.buf, body...)
	f.seal(h)
	return f.buf
}

func TestControlPassesRaftPassesBulkAndNobodyStarves(t *testing.T) {
	m := newTestMux(t, newDirectory(), peerID(0))
	c, theirs := pipeConn(t, m, true)
	send := func(kind Kind, n int) {
		f := m.frames.get(n)
		f.buf = f.buf[:headerBytes+n]
		if err := c.request(header{kind: kind}, f, nil, false); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		send(64, 32<<10)
	}
	for range 20 {
		send(kindAppend, 64<<10)
	}
	send(KindUrgent, 10)
	send(kindHeartbeat, 10)
	m.spawn(c.write)
	first := map[Kind]int{}
	last := map[Kind]int{}
	for i := range 122 {
		h, _ := readRaw(t, theirs)
		if _, ok := first[h.kind]; !ok {
			first[h.kind] = i
		}
		last[h.kind] = i
		if i == 50 {
			send(kindVote, 10) // passes what waits, not what is being written
		}
	}
	if first[KindUrgent] != 0 || first[kindHeartbeat] != 1 || first[kindAppend] != 2 {
		t.Errorf("first of each kind: %v", first)
	}
	if first[64] > last[kindAppend] {
		t.Errorf("bulk waited for all of raft: first %v, last %v", first, last)
	}
	if last[kindAppend] > last[64] {
		t.Errorf("raft waited for all of bulk: last %v", last)
	}
	if h, _ := readRaw(t, theirs); h.kind != 64 && last[kindVote] == 0 {
		t.Errorf("the vote came after everything else")
	}
}

func TestFrameForAnotherIncarnationIsDropped(t *testing.T) {
	m := newTestMux(t, newDirectory(), peerID(0))
	var served atomic.Int32
	m.Handle(64, func(_ string, _ uint32, _ []byte, reply func([]byte, error)) { served.Add(1); reply(nil, nil) })
	c, theirs := pipeConn(t, m, false)
	m.spawn(c.write)
	m.spawn(func() { c.fail(c.read()) })
	write := func(h header) {
		if _, err := theirs.Write(rawFrame(h, nil)); err != nil {
			t.Fatal(err)
		}
	}
	write(header{kind: 64, incarnation: m.incarnation + 1})             // one way: nothing comes back
	write(header{kind: 64, incarnation: m.incarnation + 1, request: 5}) // refused
	if h, _ := readRaw(t, theirs); h.request != 5 || h.status != statusWrongPeer || !h.response || h.incarnation != 2 {
		t.Errorf("answer %+v", h)
	}
	write(header{kind: 64, incarnation: m.incarnation, request: 6})
	if h, _ := readRaw(t, theirs); h.request != 6 || h.status != statusOK || served.Load() != 1 {
		t.Errorf("answer %+v after %d served", h, served.Load())
	}
}

func TestMalformedFramesEndTheConnection(t *testing.T) {
	good := rawFrame(header{kind: 64, incarnation: 1, request: 1}, []byte("body"))
	alter := func(at int, b byte) []byte {
		f := bytes.Clone(good)
		f[at] ^= b
		return f
	}
	huge := bytes.Clone(good)
	binary.LittleEndian.PutUint32(huge, 0xfffffff0)
	short := bytes.Clone(good)
	binary.LittleEndian.PutUint32(short, 3)
	for name, f := range map[string][]byte{
		"length beyond the bound": huge, "length below a header": short, "flipped bit in the body": alter(headerBytes, 1),
		"flipped bit in the group": alter(17, 8), "unknown version": alter(8, 3), "unknown flag": alter(10, 0x80),
		"a response from a dialer": rawFrame(header{kind: 64, incarnation: 1, request: 1, response: true}, nil),
		"raft request without id":  rawFrame(header{kind: kindVote, incarnation: 1}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			m := newTestMux(t, newDirectory(), peerID(0))
			c, theirs := pipeConn(t, m, false)
			ended := make(chan error, 1)
			m.spawn(c.write)
			m.spawn(func() {
				err := c.read()
				c.fail(err)
				ended <- err
			})
			go func() { _, _ = theirs.Write(append(f, make([]byte, 64)...)) }()
			if err := <-ended; err == nil || errors.Is(err, io.EOF) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func TestPeerThatReadsNoAnswersIsCutOff(t *testing.T) {
	m := newTestMux(t, newDirectory(), peerID(0), func(c *Config) { c.BulkPendingBytes = 256 << 10 })
	c, _ := pipeConn(t, m, false)
	m.spawn(c.write)
	for i := 0; c.reason() == nil; i++ {
		if i > 1000 {
			t.Fatal("1000 answers of 16 KiB wait and the connection stands")
		}
		f := m.frames.get(16 << 10)
		f.buf = f.buf[:headerBytes+16<<10]
		c.respond(header{kind: 64, request: 1}, f)
	}
	if !errors.Is(c.reason(), ErrBusy) {
		t.Errorf("ended with %v", c.reason())
	}
}

func TestRequestIDsSkipThoseThatStillWait(t *testing.T) {
	m := newTestMux(t, newDirectory(), peerID(0))
	c, _ := pipeConn(t, m, true)
	send := func() *call {
		cl := &call{complete: func([]byte, error) {}}
		if err := c.request(header{kind: 64}, m.frames.get(0), cl, false); err != nil {
			t.Fatal(err)
		}
		return cl
	}
	first := send()
	c.lastID.Store(first.request - 2) // all other ids are used up
	if c.lastID.Load() == 0xffffffff {
		c.lastID.Store(0xfffffffe)
	}
	seen := map[uint32]bool{first.request: true, 0: true}
	for range 3 {
		cl := send()
		if seen[cl.request] {
			t.Fatalf("id %d twice", cl.request)
		}
		seen[cl.request] = true
	}
}

func FuzzConnection(f *testing.F) {
	append1 := encodeRequest(nil, &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ID: []byte(peerID(1))}, Entries: []*raft.Log{{Data: []byte("x")}}}, []byte(peerID(1)))
	for _, kind := range []Kind{kindPing, kindAppend, kindHeartbeat, kindVote, kindSnapshot, 64, KindUrgent, 200} {
		f.Add(byte(kind), byte(0), uint32(1), uint32(1), append1, true)
		f.Add(byte(kind), byte(1), uint32(0), uint32(2), rawFrame(header{kind: kind, incarnation: 1, request: 1, group: 1}, append1), false)
	}
	m, err := New(nil, nil, Config{Self: peerID(0), Listen: "127.0.0.1:0", Secret: testSecret, FrameBytesMax: frameBytesMaxMin}, newDirectory())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = m.Close() })
	m.Handle(64, echo)
	group := m.Group(1)
	group.SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{}, nil) })
	m.spawn(func() {
		for {
			select {
			case rpc := <-group.Consumer():
				rpc.Respond(nil, errors.New("fuzz"))
			case <-m.done:
				return
			}
		}
	})
	f.Fuzz(func(_ *testing.T, kind, flags byte, request, group uint32, body []byte, sealed bool) {
		in := body
		if sealed {
			in = rawFrame(header{kind: Kind(kind), response: flags&1 != 0, incarnation: 1, request: request, group: group}, body)
			in = append(in, in...)
		}
		for _, owner := range []*peer{nil, {m: m, id: peerID(1)}} {
			c := newConn(m, &readOnly{r: bytes.NewReader(in)}, owner, peerID(1), "")
			c.calls[1] = &call{complete: func([]byte, error) {}}
			var wg sync.WaitGroup
			wg.Go(c.write)
			c.fail(c.read())
			wg.Wait()
		}
	})
}

// readOnly is a connection that delivers bytes and swallows what is written.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (c *readOnly) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *readOnly) Write(p []byte) (int, error)      { return len(p), nil }
func (c *readOnly) Close() error                     { return nil }
func (c *readOnly) SetWriteDeadline(time.Time) error { return nil }
