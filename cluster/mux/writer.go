package mux

import (
	"net"
	"time"
)

// Bytes of each class that one round of the writer takes. Control frames wait
// for one round at most, so a round is kept to a fraction of a millisecond of
// loopback and a few of a gigabit link; one frame may be longer.
const (
	controlRound  = 64 << 10
	raftRound     = 256 << 10
	bulkRound     = 64 << 10  // while raft has something to send
	bulkRoundIdle = 256 << 10 // while it has not
)

const (
	// gatherBytesMax: frames up to here are copied together, longer ones get an
	// element of the vector of their own.
	gatherBytesMax = 16 << 10
	// scratchBytesMax is the room for copied frames.
	scratchBytesMax = 64 << 10
	// writeChunk is what must go out within one WriteTimeout: a slow link is not
	// a dead one.
	writeChunk = 512 << 10
)

// write runs until the connection ends: it takes what waits, gathers it into one
// system call, and again.
func (c *conn) write() {
	w := gatherer{c: c}
	var batch []*frame
	for {
		var ok bool
		if batch, ok = c.next(batch[:0]); !ok {
			return
		}
		if err := w.write(batch); err != nil {
			c.fail(err)
			return
		}
		c.written(batch)
		clear(batch)
	}
}

// next waits for frames and takes one round of them.
func (c *conn) next(batch []*frame) ([]*frame, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.dead != nil {
			return nil, false
		}
		batch = c.queues[classControl].pop(batch, controlRound)
		n := len(batch)
		batch = c.queues[classRaft].pop(batch, raftRound)
		bulk := bulkRound
		if len(batch) == n {
			bulk = bulkRoundIdle
		}
		if batch = c.queues[classBulk].pop(batch, bulk); len(batch) > 0 {
			return batch, true
		}
		c.work.Wait()
	}
}

// written gives the bytes of batch back to their queues and recycles the frames.
func (c *conn) written(batch []*frame) {
	var bytes [classes]int
	total := 0
	for _, f := range batch {
		bytes[f.class] += len(f.buf)
		total += len(f.buf)
	}
	c.mu.Lock()
	for i, n := range bytes {
		c.queues[i].bytes -= n
	}
	if bytes[classRaft] > 0 {
		c.space.Broadcast()
	}
	c.mu.Unlock()
	for _, f := range batch {
		c.m.frames.put(f)
	}
	c.m.metrics.framesOut.Add(float64(len(batch)))
	c.m.metrics.bytesOut.Add(float64(total))
}

// gatherer turns a batch into few writes.
type gatherer struct {
	c       *conn
	scratch []byte
	vector  [][]byte
	bytes   int
}

func (w *gatherer) write(batch []*frame) error {
	for i, f := range batch {
		if len(f.buf) > gatherBytesMax || len(batch) == 1 {
			w.add(f.buf)
		} else {
			w.gather(f.buf, batch[i:])
		}
		if w.bytes >= writeChunk || len(w.scratch)+gatherBytesMax > scratchBytesMax {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return w.flush()
}

// gather copies b behind the frames before it. The scratch never moves while the
// vector points into it: it grows only when empty, for all that is to come.
func (w *gatherer) gather(b []byte, rest []*frame) {
	if len(w.scratch) == 0 {
		need := 0
		for _, f := range rest {
			if len(f.buf) <= gatherBytesMax {
				need += len(f.buf)
			}
		}
		if need = min(need, scratchBytesMax); need > cap(w.scratch) {
			w.scratch = make([]byte, 0, need)
		}
	}
	at := len(w.scratch)
	w.scratch = append(w.scratch, b...)
	w.bytes += len(b)
	if n := len(w.vector); n > 0 && at > 0 {
		if last := w.vector[n-1]; &last[len(last)-1] == &w.scratch[at-1] {
			w.vector[n-1] = last[:len(last)+len(b)]
			return
		}
	}
	w.vector = append(w.vector, w.scratch[at:len(w.scratch):cap(w.scratch)])
}

// add appends b without a copy, in pieces that one deadline each is fair to.
func (w *gatherer) add(b []byte) {
	w.vector = append(w.vector, b)
	w.bytes += len(b)
}

func (w *gatherer) flush() error {
	if w.bytes == 0 {
		return nil
	}
	err := w.writeVector()
	clear(w.vector)
	w.vector, w.scratch, w.bytes = w.vector[:0], w.scratch[:0], 0
	return err
}

func (w *gatherer) writeVector() error {
	nc := w.c.nc
	if w.bytes <= writeChunk {
		_ = nc.SetWriteDeadline(time.Now().Add(w.c.m.cfg.WriteTimeout))
		w.c.m.metrics.writes.Inc()
		if len(w.vector) == 1 {
			_, err := nc.Write(w.vector[0])
			return err
		}
		vector := net.Buffers(w.vector)
		_, err := vector.WriteTo(nc)
		return err
	}
	for _, b := range w.vector {
		for len(b) > 0 {
			n := min(len(b), writeChunk)
			_ = nc.SetWriteDeadline(time.Now().Add(w.c.m.cfg.WriteTimeout))
			w.c.m.metrics.writes.Inc()
			if _, err := nc.Write(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
	}
	return nil
}
