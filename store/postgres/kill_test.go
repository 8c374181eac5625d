package postgres

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// The process that TestWriterKilledAtEveryMessageOfItsTransaction kills: it
// connects, says so, and writes one batch when it is told to.
const (
	writerURL  = "SLUICE_TEST_WRITER_URL"
	writerFrom = "SLUICE_TEST_WRITER_FROM"
	writerLane = "SLUICE_TEST_WRITER_LANE"
)

func TestWriterProcess(t *testing.T) {
	url := os.Getenv(writerURL)
	if url == "" {
		t.Skip("runs as a process of its own")
	}
	from, err := strconv.ParseUint(os.Getenv(writerFrom), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(url)
	cfg.Conns = 1
	db := open(t, cfg)
	b := laneBatch(os.Getenv(writerLane), from)
	b.Term = from + 1
	eventually(t, "connected", func() bool { _, err := live(context.Background(), db, b.Shard); return err == nil })
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := db.Write(context.Background(), b); err != nil {
		t.Fatal(err)
	}
}

// The batches of the lanes: what a gap leaves out, and that it is drained.
const (
	plainBatch   = "live"
	gapBatch     = "leaves a gap"
	backlogBatch = "drains a gap"
)

// laneBatch is the batch that begins at from; those of a gap belong together.
func laneBatch(kind string, from uint64) *telemetry.Batch {
	b := fleet(4, from, from+7, 20, 10, t0+int64(from)*1_000_000)
	switch kind {
	case gapBatch:
		b.GapEnd = from + 3
	case backlogBatch:
		b = fleet(4, from, from+3, 20, 10, t0+int64(from)*1_000_000+500)
		b.Lane, b.GapEnd = telemetry.LaneBacklog, from+3
	}
	return b
}

// TestWriterKilledAtEveryMessageOfItsTransaction kills a leader's process with
// SIGKILL before and after each message of its flush to a real server, from the
// begin to the commit; the next leader reads the watermark and goes on. Every row
// is there once.
func TestWriterKilledAtEveryMessageOfItsTransaction(t *testing.T) {
	for _, kind := range []string{plainBatch, gapBatch, backlogBatch} {
		t.Run(kind, func(t *testing.T) { killWriter(t, kind) })
	}
}

func killWriter(t *testing.T, kind string) {
	s := server(t)
	url := s.Database(t)
	db := open(t, config(url)) // of the next leader
	from, rows := uint64(0), int64(0)
	// put writes a batch as the next leader.
	put := func(b *telemetry.Batch) (wasThere bool) {
		for {
			have, err := stands(context.Background(), db, b)
			if err == nil && have == b.To {
				return true
			}
			if err == nil && settle(t, db, b, db.Write(context.Background(), b)) {
				return false
			}
			if err != nil && !errors.Is(err, store.ErrUnavailable) {
				t.Fatal(err)
			}
		}
	}
	kinds, inTime := "", 0
	first, step := 0, 1
	if kind != plainBatch {
		first, step = 1, 2 // after a message is before the next one
	}
	for k := first; ; k += step {
		if kind == backlogBatch {
			b := laneBatch(gapBatch, from)
			b.Term = from + 1
			put(b)
			rows += int64(len(b.Rows))
		}
		relay := newKiller(t, s.Addr(), k/2+1, k%2 == 1)
		killed := runWriter(t, strings.Replace(url, s.Addr(), relay.addr(), 1), kind, from, relay)
		b := laneBatch(kind, from)
		b.Term = from + 2
		if put(b) {
			inTime++
		}
		rows += int64(len(b.Rows))
		if kind == gapBatch {
			b := laneBatch(backlogBatch, from)
			b.Term = from + 2
			put(b)
			rows += int64(len(b.Rows))
		}
		from += 7
		if n := one[int64](t, url, "select count(*) from telemetry"); n != rows {
			t.Fatalf("killed at message %d (%c, after it: %t): %d rows, want %d", k/2+1, relay.kind.Load(), k%2 == 1, n, rows)
		}
		if at, err := db.Watermarks(context.Background(), 4); err != nil || at != (telemetry.Watermarks{To: [telemetry.Lanes]uint64{from}}) {
			t.Fatalf("watermarks %+v, %v, want %d and no gap", at, err, from)
		}
		if !killed {
			break // it has fewer messages
		}
		if k%2 == first%2 {
			kinds += string(relay.kind.Load())
		}
	}
	t.Logf("killed at each of the messages %s, before and after; %d times it had committed", kinds, inTime)
	if len(kinds) < 6 || !strings.Contains(kinds, "d") {
		t.Errorf("a transaction of the messages %q has no COPY", kinds)
	}
	if distinct := one[int64](t, url, "select count(*) from (select distinct device_id, time, sensor, value from telemetry) d"); distinct != rows {
		t.Errorf("%d different rows, want %d", distinct, rows)
	}
}

// runWriter runs the process and reports whether it was killed.
func runWriter(t *testing.T, url, kind string, from uint64, relay *killer) (killed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestWriterProcess$", "-test.v")
	cmd.Env = append(os.Environ(), writerURL+"="+url, writerFrom+"="+strconv.FormatUint(from, 10), writerLane+"="+kind)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the writer ended before it was ready: %v, %v", err, cmd.Wait())
		}
		if strings.TrimSpace(line) == "ready" {
			break
		}
	}
	relay.arm(cmd.Process)
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(lines) // ends with the process
	err = cmd.Wait()
	relay.close()
	if err != nil && !relay.done.Load() {
		t.Fatalf("the writer: %v\n%s", err, rest)
	}
	return err != nil
}

// killer relays the messages of a PostgreSQL client, and kills it at one of them.
type killer struct {
	listener net.Listener
	target   string
	at       int64 // from 1, counted since it was armed
	after    bool  // the message goes on to the server
	process  atomic.Pointer[os.Process]
	seen     atomic.Int64
	kind     atomic.Int32 // of the message
	done     atomic.Bool
}

func newKiller(t *testing.T, target string, at int, after bool) *killer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &killer{listener: l, target: target, at: int64(at), after: after}
	go k.serve()
	return k
}

func (k *killer) addr() string { return k.listener.Addr().String() }

func (k *killer) arm(p *os.Process) { k.process.Store(p) }

func (k *killer) close() { _ = k.listener.Close() }

func (k *killer) serve() {
	for {
		client, err := k.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", k.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		go func() {
			_, _ = io.Copy(client, server)
			_ = client.Close()
		}()
		go func() {
			k.relay(server, bufio.NewReader(client))
			_ = server.Close()
		}()
	}
}

// relay passes the startup message, which has no type, and then one message
// after the other.
func (k *killer) relay(server net.Conn, client *bufio.Reader) {
	for typed := 0; ; typed = 1 {
		head := make([]byte, typed+4)
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		body := make([]byte, int(binary.BigEndian.Uint32(head[typed:]))-4)
		if _, err := io.ReadFull(client, body); err != nil {
			return
		}
		p := k.process.Load()
		hit := p != nil && typed == 1 && k.seen.Add(1) == k.at
		if hit {
			k.kind.Store(int32(head[0]))
			k.done.Store(true)
		}
		if hit && !k.after {
			_ = p.Kill() // the process is waited for
			return
		}
		if _, err := server.Write(append(head, body...)); err != nil {
			return
		}
		if hit {
			_ = p.Kill()
			return
		}
	}
}
