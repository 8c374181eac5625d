package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func TestStreamCarriesHeaderAndBytesBothWays(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	b.HandleStream(70, func(from string, group uint32, header []byte, s io.ReadWriteCloser) {
		if from != peerID(0) || group != 3 || string(header) != "what" {
			return
		}
		got, err := io.ReadAll(s)
		if err == nil {
			_, _ = s.Write(bytes.ToUpper(got))
		}
	})
	s, err := a.OpenStream(testContext(t), peerID(1), 70, 3, []byte("what"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("some bytes ", 300000)
	if _, err := io.WriteString(s, text); err != nil {
		t.Fatal(err)
	}
	if err := s.(*Stream).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if err != nil || string(got) != strings.ToUpper(text) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	_ = s.Close()
	if _, err := a.OpenStream(testContext(t), peerID(1), 71, 0, nil); !errors.Is(err, ErrNoHandler) {
		t.Errorf("kind without handler: %v", err)
	}
	if _, err := a.OpenStream(testContext(t), peerID(2), 70, 0, nil); !errors.Is(err, ErrNotConnected) {
		t.Errorf("unknown peer: %v", err)
	}
	if _, err := a.OpenStream(testContext(t), peerID(1), 70, 0, make([]byte, streamHeaderBytesMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("long header: %v", err)
	}
}

func TestCloseEndsStreamsAndWaitsForTheirHandlers(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	var ended sync.WaitGroup
	ended.Add(1)
	b.HandleStream(70, func(_ string, _ uint32, _ []byte, s io.ReadWriteCloser) {
		defer ended.Done()
		_, _ = io.Copy(io.Discard, s)
	})
	s, err := a.OpenStream(testContext(t), peerID(1), 70, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = b.Close()
	ended.Wait()
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("the dialer's end still reads")
	}
	_ = a.Close()
	if _, err := a.OpenStream(context.Background(), peerID(1), 70, 0, nil); err == nil {
		t.Error("stream opened on a closed mux")
	}
}

func TestStreamOnWhichNothingMovesEnds(t *testing.T) {
	d := newDirectory()
	a := newTestMux(t, d, peerID(0), func(c *Config) { c.StreamStall = 100 * time.Millisecond })
	b := newTestMux(t, d, peerID(1))
	done := make(chan struct{})
	b.HandleStream(70, func(string, uint32, []byte, io.ReadWriteCloser) { <-done })
	defer close(done)
	s, err := a.OpenStream(testContext(t), peerID(1), 70, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("read ended without an error")
	}
	for err == nil { // until the kernel's buffers are full
		_, err = s.Write(make([]byte, 1<<20))
	}
}

// snapshotOf is a request of the leader m.
func snapshotOf(m *Mux, term, index uint64, size int64) *raft.InstallSnapshotRequest {
	return &raft.InstallSnapshotRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: m.self, Addr: m.self}, SnapshotVersion: 1,
		Term: term, LastLogIndex: index, Size: size}
}

// install is raft's part on a follower: read everything, answer.
func install(rpc raft.RPC) (int64, error) {
	n, err := io.Copy(io.Discard, rpc.Reader)
	rpc.Respond(&raft.InstallSnapshotResponse{Term: 1, Success: err == nil}, err)
	return n, err
}

func TestNewerSnapshotEndsTheOlderOne(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	from, to := a.Group(1), b.Group(1)
	target := raft.ServerAddress(peerID(1))
	slow, feed := io.Pipe()
	defer func() { _ = feed.Close() }()
	first := make(chan error, 1)
	go func() {
		first <- from.InstallSnapshot("", target, snapshotOf(a, 1, 10, 1<<20), new(raft.InstallSnapshotResponse), slow)
	}()
	go func() { _, _ = feed.Write(make([]byte, snapshotChunk)) }()
	old := <-to.Consumer()
	installed := make(chan error, 2)
	go func() { _, err := install(old); installed <- err }()
	second := make(chan error, 1)
	go func() {
		second <- from.InstallSnapshot("", target, snapshotOf(a, 1, 20, 1000), new(raft.InstallSnapshotResponse), bytes.NewReader(make([]byte, 1000)))
	}()
	rpc := <-to.Consumer()
	if err := <-installed; err == nil {
		t.Error("the superseded snapshot was read to its end")
	}
	if n, err := install(rpc); n != 1000 || err != nil {
		t.Errorf("the newer one: %d bytes, %v", n, err)
	}
	if err := <-second; err != nil {
		t.Errorf("the newer one: %v", err)
	}
	_ = feed.Close() // the sender finds its stream closed with the next write
	if err := <-first; err == nil {
		t.Error("the superseded one: no error")
	}
}

func TestDelayedDuplicateOfASnapshotIsRefused(t *testing.T) {
	m := newTestMux(t, newDirectory(), peerID(0))
	var all installs
	current := func(from string, session, seq, term uint64) (*incoming, error) {
		in := &incoming{m: m, from: from, id: installID{session, seq}, request: &raft.InstallSnapshotRequest{Term: term},
			done: make(chan struct{}), changed: make(chan struct{})}
		return in, all.begin(in)
	}
	begin := func(from string, session, seq, term uint64) error {
		in, err := current(from, session, seq, term)
		if err == nil {
			close(in.done)
		}
		return err
	}
	if err := begin("n1", 1, 2, 5); err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{1, 2} {
		if err := begin("n1", 1, seq, 9); !errors.Is(err, ErrSuperseded) {
			t.Errorf("number %d after 2: %v", seq, err)
		}
	}
	if err := begin("n2", 7, 1, 5); err != nil {
		t.Errorf("another sender: %v", err)
	}
	if err := begin("n1", 2, 1, 5); err != nil {
		t.Errorf("the sender after a restart: %v", err)
	}
	in, err := current("n1", 2, 2, 6)
	if err != nil {
		t.Fatal(err)
	}
	if err := begin("n2", 7, 2, 5); !errors.Is(err, ErrSuperseded) {
		t.Errorf("a deposed leader's: %v", err)
	}
	if err := begin("n2", 7, 3, 7); err != nil {
		t.Errorf("a new leader's: %v", err)
	}
	if _, err := in.Read(make([]byte, 1)); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the one it replaced reads on: %v", err)
	}
}

// fragile breaks after a number of bytes written.
type fragile struct {
	net.Conn
	left atomic.Int64
}

func (c *fragile) Write(p []byte) (int, error) {
	if c.left.Add(-int64(len(p))) < 0 {
		_ = c.Conn.Close()
		return 0, errors.New("the cable is out")
	}
	return c.Conn.Write(p)
}

func TestBrokenSnapshotGoesOnWhereItWas(t *testing.T) {
	// A connection that breaks loses what is in its buffers, so each one must live
	// for more than a window, or nothing that was sent need ever have arrived.
	const size, life = 24 << 20, 4 * ackBytes
	d := newDirectory()
	var dialer net.Dialer
	var streams atomic.Int32
	a := newTestMux(t, d, peerID(0), func(c *Config) {
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			nc, err := dialer.DialContext(ctx, "tcp", addr)
			f := &fragile{Conn: nc}
			f.left.Store(life)
			streams.Add(1)
			return f, err
		}
	})
	b := newTestMux(t, d, peerID(1))
	eventually(t, "a connection", func() bool { a.Connect(peerID(1)); return a.Connected(peerID(1)) })
	want := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(want)
	got := make(chan []byte, 1)
	to := b.Group(1)
	go func() {
		rpc := <-to.Consumer()
		body, err := io.ReadAll(rpc.Reader)
		rpc.Respond(&raft.InstallSnapshotResponse{Term: 3, Success: err == nil}, err)
		got <- body
	}()
	resp := new(raft.InstallSnapshotResponse)
	if err := a.Group(1).InstallSnapshot("", raft.ServerAddress(peerID(1)), snapshotOf(a, 1, 10, size), resp, bytes.NewReader(want)); err != nil || !resp.Success || resp.Term != 3 {
		t.Fatalf("%+v, %v after %d connections", resp, err, streams.Load())
	}
	if !bytes.Equal(<-got, want) {
		t.Error("other bytes arrived")
	}
	if n := streams.Load(); n < size/life {
		t.Errorf("only %d connections", n)
	}
}

func TestBytesOfAConnectionThatWasReplacedDoNotCount(t *testing.T) {
	m := newTestMux(t, newDirectory(), peerID(0))
	stream := func() (*Stream, net.Conn) {
		here, there := net.Pipe()
		t.Cleanup(func() { _, _ = here.Close(), there.Close() })
		return &Stream{m: m, nc: here, free: func() {}}, there
	}
	old, sender := stream()
	in := &incoming{m: m, from: peerID(1), request: &raft.InstallSnapshotRequest{Size: 8}, acks: make(chan struct{}, 1),
		done: make(chan struct{}), changed: make(chan struct{})}
	if _, err := in.attach(old); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = sender.Write([]byte("ab")) }()
	got := make([]byte, 2)
	if _, err := io.ReadFull(in, got); err != nil {
		t.Fatal(err)
	}
	// The sender is told to go on behind "ab" while "cd", sent on the old connection,
	// has just been read from it.
	fresh, sender := stream()
	taken, err := in.attach(fresh)
	if err != nil || taken != 2 {
		t.Fatalf("%d, %v", taken, err)
	}
	if in.took(old, 2) {
		t.Error("bytes of the old connection count")
	}
	go func() { _, _ = sender.Write([]byte("cdefgh")) }()
	rest, err := io.ReadAll(in)
	if err != nil || string(got)+string(rest) != "abcdefgh" {
		t.Errorf("%q and %q, %v", got, rest, err)
	}
}

func TestSnapshotOfADeadSenderIsGivenUpAtOnce(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	eventually(t, "a connection", func() bool { a.Connect(peerID(1)); return b.hears(peerID(0)) })
	to := b.Group(1)
	slow, feed := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		sent <- a.Group(1).InstallSnapshot("", raft.ServerAddress(peerID(1)), snapshotOf(a, 1, 10, 1<<20), new(raft.InstallSnapshotResponse), slow)
	}()
	rpc := <-to.Consumer()
	_, _ = feed.Write(make([]byte, snapshotChunk))
	start := time.Now()
	_ = a.Close()
	_ = feed.Close()
	if _, err := install(rpc); err == nil {
		t.Error("half a snapshot was read to its end")
	}
	if d := time.Since(start); d > resumePatience {
		t.Errorf("raft waited for %v", d)
	}
	if err := <-sent; err == nil {
		t.Error("sender: no error")
	}
}

func TestGateRefusesBeforeRaftSeesIt(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	target := raft.ServerAddress(peerID(1))
	installed := make(chan uint64, 1)
	to := b.Group(1)
	to.SetGate(Gate{
		Append: func(*raft.AppendEntriesRequest) error { return errors.New("disk is full") },
		Snapshot: func(r *raft.InstallSnapshotRequest) error {
			if r.LastLogIndex <= 100 {
				return errors.New("not newer than commit index 100")
			}
			return nil
		},
		Installed: func(r *raft.InstallSnapshotRequest) { installed <- r.LastLogIndex },
	})
	to.SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil) })
	h := raft.RPCHeader{ProtocolVersion: 3, ID: a.self, Addr: a.self}
	full := &raft.AppendEntriesRequest{RPCHeader: h, Term: 1, Entries: []*raft.Log{{Index: 1, Term: 1}}}
	if err := a.Group(1).AppendEntries("", target, full, new(raft.AppendEntriesResponse)); err == nil || err.Error() != "disk is full" {
		t.Errorf("entries: %v", err)
	}
	if err := a.Group(1).AppendEntries("", target, &raft.AppendEntriesRequest{RPCHeader: h, Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
		t.Errorf("heartbeat: %v", err)
	}
	err := a.Group(1).InstallSnapshot("", target, snapshotOf(a, 1, 100, 10), new(raft.InstallSnapshotResponse), strings.NewReader("0123456789"))
	if err == nil || !strings.Contains(err.Error(), "not newer") {
		t.Errorf("old snapshot: %v", err)
	}
	go func() { _, _ = install(<-to.Consumer()) }()
	resp := new(raft.InstallSnapshotResponse)
	if err := a.Group(1).InstallSnapshot("", target, snapshotOf(a, 1, 101, 10), resp, strings.NewReader("0123456789")); err != nil || !resp.Success {
		t.Errorf("new snapshot: %+v, %v", resp, err)
	}
	if got := <-installed; got != 101 {
		t.Errorf("installed %d", got)
	}
	stranger := *full
	stranger.ID = []byte(peerID(5))
	if err := a.Group(1).AppendEntries("", target, &stranger, new(raft.AppendEntriesResponse)); err == nil || !strings.Contains(err.Error(), peerID(5)) {
		t.Errorf("request in another's name: %v", err)
	}
	_ = to.Close()
	if err := a.Group(1).AppendEntries("", target, full, new(raft.AppendEntriesResponse)); !errors.Is(err, ErrNoGroup) {
		t.Errorf("closed group: %v", err)
	}
}

// TestKnownSnapshotIsAnsweredAndNotInstalled sends what the follower has, in one
// piece and as a duplicate that comes late, and then something newer.
func TestKnownSnapshotIsAnsweredAndNotInstalled(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	target := raft.ServerAddress(peerID(1))
	to := b.Group(1)
	committed := uint64(50)
	to.SetGate(Gate{Known: func(r *raft.InstallSnapshotRequest) bool { return r.LastLogIndex <= committed }})
	for _, size := range []int64{10, 8 << 20} { // it fits into a socket, or does not
		resp := new(raft.InstallSnapshotResponse)
		err := a.Group(1).InstallSnapshot("", target, snapshotOf(a, 3, 50, size), resp, io.LimitReader(zeros{}, size))
		if err != nil || !resp.Success || resp.Term != 3 {
			t.Errorf("known snapshot of %d bytes: %+v, %v", size, resp, err)
		}
	}
	select {
	case rpc := <-to.Consumer():
		t.Fatalf("raft got %+v", rpc.Command)
	default:
	}
	go func() { _, _ = install(<-to.Consumer()) }()
	resp := new(raft.InstallSnapshotResponse)
	if err := a.Group(1).InstallSnapshot("", target, snapshotOf(a, 3, 51, 10), resp, io.LimitReader(zeros{}, 10)); err != nil || !resp.Success {
		t.Errorf("new snapshot: %+v, %v", resp, err)
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHeartbeatsPassAStalledSnapshot stalls a snapshot in the middle and raft with
// it, and sends heartbeats, of its group and of others, and votes of others.
func TestHeartbeatsPassAStalledSnapshot(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	target := raft.ServerAddress(peerID(1))
	const size = 64 << 20
	feed, fed := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		sent <- a.Group(1).InstallSnapshot("", target, snapshotOf(a, 1, 10, size), new(raft.InstallSnapshotResponse), feed)
	}()
	first := make(chan error, 1)
	go func() { _, err := fed.Write(make([]byte, size/2)); first <- err }()
	rpc := <-b.Group(1).Consumer() // raft's main loop is busy with it from here on
	read := make(chan error, 1)
	half := make(chan struct{})
	go func() {
		_, err := io.CopyN(io.Discard, rpc.Reader, size/2)
		close(half)
		if err == nil {
			_, err = io.Copy(io.Discard, rpc.Reader)
		}
		rpc.Respond(&raft.InstallSnapshotResponse{Term: 1, Success: err == nil}, err)
		read <- err
	}()
	<-half // and now nothing comes
	h := raft.RPCHeader{ProtocolVersion: 3, ID: a.self, Addr: a.self}
	var beats atomic.Int32
	for _, group := range []uint32{1, 2} {
		b.Group(group).SetHeartbeatHandler(func(rpc raft.RPC) {
			beats.Add(1)
			rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
		})
		for range 20 {
			if err := a.Group(group).AppendEntries("", target, &raft.AppendEntriesRequest{RPCHeader: h, Term: 1}, new(raft.AppendEntriesResponse)); err != nil {
				t.Errorf("heartbeat of group %d: %v", group, err)
			}
		}
	}
	go func() {
		rpc := <-b.Group(2).Consumer()
		rpc.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
	}()
	vote := new(raft.RequestVoteResponse)
	if err := a.Group(2).RequestVote("", target, &raft.RequestVoteRequest{RPCHeader: h, Term: 2, Candidate: a.self}, vote); err != nil || !vote.Granted {
		t.Errorf("vote of another group: %+v, %v", vote, err)
	}
	select {
	case err := <-sent:
		t.Fatalf("the snapshot ended meanwhile: %v", err)
	default:
	}
	if n := beats.Load(); n != 40 {
		t.Errorf("%d heartbeats were handled", n)
	}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if _, err := fed.Write(make([]byte, size-size/2)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(<-sent, <-read); err != nil {
		t.Error(err)
	}
}

func TestFullGroupAnswersBusyAndClosingItAnswersTheRest(t *testing.T) {
	d := newDirectory()
	a, b := newTestMux(t, d, peerID(0)), newTestMux(t, d, peerID(1))
	to := b.Group(1) // whose raft never comes
	h := raft.RPCHeader{ProtocolVersion: 3, ID: a.self, Addr: a.self}
	var mu sync.Mutex
	busy, gone := 0, 0
	var wg sync.WaitGroup
	for range consumerDepth + 10 {
		wg.Go(func() {
			err := a.Group(1).RequestVote("", raft.ServerAddress(peerID(1)), &raft.RequestVoteRequest{RPCHeader: h}, new(raft.RequestVoteResponse))
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, ErrBusy) {
				busy++
			}
			if errors.Is(err, ErrNoGroup) {
				gone++
			}
		})
	}
	eventually(t, "ten to be told busy", func() bool { mu.Lock(); defer mu.Unlock(); return busy == 10 })
	_ = to.Close()
	wg.Wait()
	if gone != consumerDepth {
		t.Errorf("%d were told that the group is gone, want %d", gone, consumerDepth)
	}
}

func TestAppendLargerThanAFrameIsCut(t *testing.T) {
	d := newDirectory()
	small := func(c *Config) { c.FrameBytesMax = frameBytesMaxMin }
	a, b := newTestMux(t, d, peerID(0), small), newTestMux(t, d, peerID(1), small)
	to := b.Group(1)
	go func() {
		rpc := <-to.Consumer()
		n := uint64(len(rpc.Command.(*raft.AppendEntriesRequest).Entries))
		rpc.Respond(&raft.AppendEntriesResponse{LastLog: n, Success: true}, nil)
	}()
	r := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: a.self, Addr: a.self}, Term: 1}
	for i := range 10 {
		r.Entries = append(r.Entries, &raft.Log{Index: uint64(i + 1), Term: 1, Data: make([]byte, 20<<10)})
	}
	resp := new(raft.AppendEntriesResponse)
	if err := a.Group(1).AppendEntries("", raft.ServerAddress(peerID(1)), r, resp); err != nil || len(r.Entries) != 3 || resp.LastLog != 3 {
		t.Errorf("%d entries left, follower has %d, %v", len(r.Entries), resp.LastLog, err)
	}
	r.Entries = []*raft.Log{{Index: 1, Data: make([]byte, 70<<10)}}
	if err := a.Group(1).AppendEntries("", raft.ServerAddress(peerID(1)), r, resp); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one entry beyond a frame: %v", err)
	}
}
