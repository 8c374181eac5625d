package mux

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// snapshotChunk is what is read, rate limited and written at a time.
	snapshotChunk = 256 << 10
	// snapshotWindow is what is kept until the follower's raft has taken it, to
	// go on from there on a new connection: 40 MB/s at a round trip of 100 ms.
	snapshotWindow = 4 << 20
	// snapshotAttempts is how many connections in a row may break without
	// progress.
	snapshotAttempts = 5
	// snapshotHeaderBytes: session, number, and whether this goes on from before.
	snapshotHeaderBytes = 17
)

// newSession numbers this process, so that snapshot numbers of an earlier one
// are not compared with ours.
func newSession() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// InstallSnapshot implements raft.Transport: the snapshot goes over a connection
// of its own, at SnapshotBytesPerSecond, and goes on over a new one when it
// breaks. A newer one for the same peer ends an older one, here and there.
func (t *Transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	to, err := incarnationOf(id, target)
	if err != nil {
		return err
	}
	o := &outgoing{t: t, target: string(target), size: args.Size, data: data}
	o.changed.L = &o.mu
	o.first = binary.LittleEndian.AppendUint64(nil, t.m.session)
	o.first = binary.LittleEndian.AppendUint64(o.first, t.m.snapshotSeq.Add(1))
	o.first = binary.AppendUvarint(append(o.first, 0), uint64(to))
	o.first = encodeRequest(o.first, args, t.m.self)
	t.installs.send(id, o)
	defer t.installs.sent(id, o)
	body, err := o.run()
	if err == nil {
		err = decodeResponse(resp, body, []byte(target))
	}
	t.m.metrics.snapshots.WithLabelValues("sent", result(err)).Inc()
	if err != nil {
		return fmt.Errorf("send snapshot %d of group %d: %w", args.LastLogIndex, t.group, err)
	}
	return nil
}

func result(err error) string {
	if err == nil {
		return "ok"
	}
	return "error"
}

// chunk is a piece of the snapshot that the follower has not confirmed.
type chunk struct {
	at int64
	b  []byte
}

// outgoing is a snapshot on its way to one follower.
type outgoing struct {
	t      *Transport
	target string
	size   int64
	data   io.Reader
	first  []byte // header of the stream

	// Only run uses these.
	window []chunk
	read   int64 // bytes taken off data
	spare  [][]byte

	mu      sync.Mutex
	changed sync.Cond
	stream  *Stream
	acked   int64
	ended   error  // of the current stream; nil while it stands
	answer  []byte // of raft
	over    bool   // superseded
}

// errBroken marks what a new connection may mend.
var errBroken = errors.New("stream broke")

// run sends, again where the follower is after a broken connection, until there
// is an answer.
func (o *outgoing) run() ([]byte, error) {
	var err error
	for tries, progress := 0, int64(-1); tries < snapshotAttempts; tries++ {
		var body []byte
		if body, err = o.attempt(); err == nil || !errors.Is(err, errBroken) {
			return body, err
		}
		o.mu.Lock()
		acked, over := o.acked, o.over
		o.mu.Unlock()
		if over {
			return nil, ErrSuperseded
		}
		if acked > progress {
			progress, tries = acked, 0
		}
		o.first[snapshotHeaderBytes-1] = 1
		select {
		case <-time.After(o.t.m.cfg.RedialMin << tries):
		case <-o.t.m.done:
			return nil, ErrClosed
		}
	}
	return nil, err
}

// attempt uses one connection.
func (o *outgoing) attempt() ([]byte, error) {
	s, have, err := o.open()
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	o.stream, o.ended = s, nil
	over := o.over
	o.mu.Unlock()
	if over {
		_ = s.Close()
		return nil, ErrSuperseded
	}
	var wg sync.WaitGroup
	wg.Go(func() { o.listen(s) })
	err = o.copy(s, have)
	if err == nil {
		err = o.await(func() bool { return o.answer != nil })
	}
	_ = s.Close()
	wg.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.answer != nil {
		return o.answer, nil
	}
	if o.ended != nil && !errors.Is(o.ended, errBroken) {
		return nil, o.ended // the follower said why
	}
	return nil, err
}

// open connects and learns where the follower is.
func (o *outgoing) open() (*Stream, int64, error) {
	resume := o.first[snapshotHeaderBytes-1] != 0
	s, body, err := o.t.m.openStream(context.Background(), o.target, kindSnapshot, o.t.group, o.first)
	if err != nil {
		if resume && errors.Is(err, ErrNotConnected) {
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		return nil, 0, err
	}
	c := cursor{b: body}
	have := int64(c.uint64())
	base := o.read
	if len(o.window) > 0 {
		base = o.window[0].at
	}
	if c.end() != nil || have > o.read || have < base {
		_ = s.Close()
		return nil, 0, fmt.Errorf("follower goes on from byte %d of %d: %w", have, o.read, errSpoke)
	}
	return s, have, nil
}

// listen hears what the follower has taken, and raft's answer.
func (o *outgoing) listen(s *Stream) {
	for {
		h, body, err := s.readFrame(o.t.m.cfg.FrameBytesMax)
		o.mu.Lock()
		c := cursor{b: body}
		switch {
		case err != nil:
			o.ended = fmt.Errorf("%w: %w", errBroken, err)
		case h.status == statusWorking:
			if at := int64(c.uint64()); at > o.acked {
				o.acked = at
			}
		case h.status == statusOK:
			o.answer, o.ended = append([]byte{}, body...), io.EOF
		default:
			o.ended = remoteError(o.target, h.status, body)
		}
		ended := o.ended != nil
		o.changed.Broadcast()
		o.mu.Unlock()
		if ended {
			_ = s.Close() // ends a write that waits
			return
		}
	}
}

// await waits until ok or the stream has ended.
func (o *outgoing) await(ok func() bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !ok() {
		if o.ended != nil {
			return o.ended
		}
		o.changed.Wait()
	}
	return nil
}

// copy writes the snapshot from byte have on.
func (o *outgoing) copy(s *Stream, have int64) error {
	sent := o.t.m.metrics.snapshotBytes.WithLabelValues("sent")
	for have < o.size {
		if have == o.read {
			if err := o.next(); err != nil {
				return err
			}
		}
		b := o.piece(have)
		if l := o.t.m.limiter; l != nil {
			if err := l.WaitN(context.Background(), len(b)); err != nil {
				return fmt.Errorf("limit the rate: %w", err)
			}
		}
		if _, err := s.Write(b); err != nil {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
		sent.Add(float64(len(b)))
		have += int64(len(b))
	}
	return nil
}

// piece returns what the window has from byte at on, up to the chunk's end.
func (o *outgoing) piece(at int64) []byte {
	for _, c := range o.window {
		if end := c.at + int64(len(c.b)); at < end {
			return c.b[at-c.at:]
		}
	}
	return nil // at < o.read: cannot be
}

// next reads another chunk when the window has room.
func (o *outgoing) next() error {
	if err := o.await(func() bool { return o.read-o.acked < snapshotWindow }); err != nil {
		return err
	}
	o.release()
	n := min(o.size-o.read, snapshotChunk)
	var b []byte
	if k := len(o.spare); k > 0 && int64(cap(o.spare[k-1])) >= n {
		b, o.spare = o.spare[k-1][:n], o.spare[:k-1]
	} else {
		b = make([]byte, n)
	}
	if _, err := io.ReadFull(o.data, b); err != nil {
		return fmt.Errorf("read snapshot: %w", err)
	}
	o.window = append(o.window, chunk{o.read, b})
	o.read += n
	return nil
}

// release recycles the chunks that the follower has taken.
func (o *outgoing) release() {
	o.mu.Lock()
	acked := o.acked
	o.mu.Unlock()
	for len(o.window) > 0 && o.window[0].at+int64(len(o.window[0].b)) <= acked {
		o.spare = append(o.spare, o.window[0].b)
		o.window = o.window[1:]
	}
}

// supersede ends the snapshot for a newer one.
func (o *outgoing) supersede() {
	o.mu.Lock()
	o.over = true
	s := o.stream
	o.mu.Unlock()
	if s != nil {
		_ = s.Close()
	}
}
