package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
	"github.com/sluice-iot/sluice/telemetry"
)

// settle does what a shard does after an error: the watermark says whether the
// batch went in, and a batch that did not is written again.
func settle(t *testing.T, db *DB, b *telemetry.Batch, err error) (stored bool) {
	t.Helper()
	for {
		var w *store.WatermarkError
		have := uint64(0)
		switch {
		case err == nil:
			return true
		case errors.As(err, &w):
			have = w.Have
		default:
			if have, err = stands(context.Background(), db, b); err != nil {
				if !errors.Is(err, store.ErrUnavailable) {
					t.Fatalf("watermark: %v", err)
				}
				time.Sleep(time.Millisecond)
				continue
			}
		}
		if have != b.From && have != b.To {
			t.Fatalf("watermark is %d after a write from %d to %d", have, b.From, b.To)
		}
		return have == b.To
	}
}

// TestConnectionCutAnywhere cuts the connection at many places of a write, in
// both directions: all of the batch is stored or nothing, and the watermark
// tells which.
func TestConnectionCutAnywhere(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	p := pgtest.NewProxy(t, s.Addr())
	cfg := config(p.URL(url))
	cfg.Conns = 1
	db := open(t, cfg)
	from, rows := uint64(0), int64(0)
	next := func() *telemetry.Batch {
		return fleet(4, from, from+7, 40, 25, t0+int64(from)*1_000_000)
	}
	b := next()
	write(t, db, b) // connected, statements prepared
	from, rows = b.To, rows+int64(len(b.Rows))
	p.Passed.Store(0)
	p.Answered.Store(0)
	b = next()
	write(t, db, b)
	from, rows = b.To, rows+int64(len(b.Rows))
	up, down := p.Passed.Load(), p.Answered.Load()

	// Two dozen places over the whole, and every few bytes of the last
	// statements, where it is decided.
	type cutAt struct{ up, down int64 }
	var cuts []cutAt
	for i := range int64(24) {
		cuts = append(cuts, cutAt{up * i / 24, -1})
	}
	for n := int64(1); n < 320; n += 17 {
		cuts = append(cuts, cutAt{up - n, -1})
	}
	for n := int64(0); n <= down+8; n += 13 {
		cuts = append(cuts, cutAt{-1, n})
	}
	in, out := 0, 0
	for _, c := range cuts {
		b := next()
		p.Allow(c.up, c.down)
		err := db.Write(context.Background(), b)
		p.Allow(-1, -1)
		stored := settle(t, db, b, err)
		if stored {
			in++
		} else {
			out++
			if err = db.Write(context.Background(), b); !settle(t, db, b, err) {
				// The keeper may not be back yet.
				eventually(t, "written after a cut", func() bool { return settle(t, db, b, db.Write(context.Background(), b)) })
			}
		}
		from, rows = b.To, rows+int64(len(b.Rows))
		if n := one[int64](t, url, "select count(*) from telemetry"); n != rows {
			t.Fatalf("cut at %+v of (%d, %d): %d rows stored, want %d", c, up, down, n, rows)
		}
	}
	if in < 2 || out < 24 {
		t.Errorf("%d cuts came after the commit and %d before it: too few of one", in, out)
	}
	if n := one[int64](t, url, "select count(*) from (select distinct device_id, sensor, time, value from telemetry) d"); n != rows {
		t.Errorf("%d different rows of %d", n, rows)
	}
}

// TestTwoLeadersOneWins lets several writers that believe they lead write the
// same shard at once, over and over.
func TestTwoLeadersOneWins(t *testing.T) {
	url := server(t).Database(t)
	const writers = 3
	var dbs []*DB
	for range writers { // which also migrate at once
		dbs = append(dbs, open(t, config(url)))
	}
	var rows int64
	for round := range uint64(15) {
		from := round * 10
		var wg sync.WaitGroup
		errs := make([]error, writers)
		batches := make([]*telemetry.Batch, writers)
		for i, db := range dbs {
			// Different ranges from the same watermark, by leaders of different terms.
			batches[i] = fleet(9, from, from+10, 5+i, 10, t0+int64(round)*1_000_000_000)
			batches[i].Term = 5
			wg.Go(func() { errs[i] = db.Write(context.Background(), batches[i]) })
		}
		wg.Wait()
		won := 0
		for i, err := range errs {
			if err == nil {
				won++
				rows += int64(len(batches[i].Rows))
			} else if w := mismatch(t, err); w.Have != from+10 {
				t.Fatalf("round %d: %+v", round, w)
			}
		}
		if won != 1 {
			t.Fatalf("round %d: %d writers won", round, won)
		}
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != rows {
		t.Fatalf("%d rows stored, want %d", n, rows)
	}
}

// TestServerKilledWhileShardsWrite kills the whole server again and again while
// shards write and readers read.
func TestServerKilledWhileShardsWrite(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	url := s.Database(t)
	db := open(t, config(url))
	ctx, stop := context.WithCancel(context.Background())
	const shards = 3
	var wg sync.WaitGroup
	var last [shards]uint64
	write(t, db, fleet(99, 0, 1, 1, 1, t0)) // the tables are there
	for shard := range telemetry.ShardID(shards) {
		wg.Go(func() {
			for from := uint64(0); ctx.Err() == nil; {
				b := fleet(shard, from, from+3, 20, 10, t0+int64(from)*1_000_000_000)
				for i := range b.Devices {
					b.Devices[i] = fmt.Sprintf("s%d-%05d", shard, i)
					b.Updates[i].Device = b.Devices[i]
				}
				if settle(t, db, b, db.Write(context.Background(), b)) {
					from = b.To
					last[shard] = from
				}
			}
		})
	}
	wg.Go(func() { // rows and watermark of one snapshot always fit
		for ctx.Err() == nil {
			points, w, err := db.Read(context.Background(), 1, all("s1-00003"))
			if err == nil && uint64(len(points)) != w.To[0]/3*40 {
				t.Errorf("%d points at watermark %d", len(points), w.To[0])
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	for range 4 {
		before := one[int64](t, url, "select coalesce(sum(last_index), 0)::bigint from flush_watermarks")
		eventually(t, "writes go on", func() bool {
			return one[int64](t, url, "select coalesce(sum(last_index), 0)::bigint from flush_watermarks") > before+15
		})
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "noticed", func() bool { return db.Health() != nil })
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "healthy again", func() bool { return db.Health() == nil })
	stop()
	wg.Wait()
	for shard := range telemetry.ShardID(shards) {
		if w, err := live(context.Background(), db, shard); err != nil || w != last[shard] {
			t.Errorf("shard %d: watermark %d, %v, the writer says %d", shard, w, err, last[shard])
		}
		if n := one[int64](t, url, "select count(*) from telemetry where device_id like $1", fmt.Sprintf("s%d-%%", shard)); n != int64(last[shard])/3*20*40 {
			t.Errorf("shard %d: %d rows at watermark %d", shard, n, last[shard])
		}
	}
}

func TestDatabaseDownAtOpen(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	url := s.Database(t)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	db := open(t, config(url))
	b := fleet(1, 0, 3, 2, 2, t0)
	for range 3 {
		begin := time.Now()
		if err := db.Write(context.Background(), b); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("write without a server: %v", err)
		}
		if d := time.Since(begin); d > 20*time.Second {
			t.Fatalf("it took %v to say so", d)
		}
	}
	if err := db.Health(); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("health: %v", err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written", func() bool { return settle(t, db, b, db.Write(context.Background(), b)) })
	eventually(t, "healthy", func() bool { return db.Health() == nil })
}

// TestPausedServerIsWaitedFor: a server that stands still for a while fails
// nothing.
func TestPausedServerIsWaitedFor(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	db := open(t, config(s.Database(t)))
	write(t, db, fleet(1, 0, 3, 2, 2, t0))
	s.Pause()
	done := make(chan error, 1)
	go func() { done <- db.Write(context.Background(), fleet(1, 3, 6, 200, 20, t0)) }()
	select {
	case err := <-done:
		t.Errorf("a paused server answered: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	if _, err := live(ctx, db, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("watermark of a paused server: %v", err)
	}
	cancel()
	s.Resume()
	if err := <-done; err != nil {
		t.Errorf("write over the pause: %v", err)
	}
}

// TestPausedLeaderLosesItsLock: a predecessor that was stopped between its last
// statement and its commit keeps nobody waiting for ever.
func TestPausedLeaderLosesItsLock(t *testing.T) {
	url := server(t).Database(t)
	cfg := config(url)
	cfg.IdleTimeout = 300 * time.Millisecond
	old, db := open(t, cfg), open(t, cfg)
	write(t, old, fleet(1, 0, 3, 2, 2, t0))
	c, err := old.acquire(context.Background(), old.writes)
	if err != nil {
		t.Fatal(err)
	}
	late := fleet(1, 3, 6, 2, 2, t0)
	w := newWriter(old, "c1", []*request{{ctx: context.Background(), batch: late, done: make(chan error, 1)}}, false)
	w.conn = c
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := w.exec(ctx, "begin"); return err }, w.fill, w.move,
	} {
		if err := step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	next := fleet(1, 3, 9, 2, 2, t0)
	next.Term = 4
	write(t, db, next) // waits for the lock, not longer than IdleTimeout
	err = w.commit(context.Background())
	old.release(c, old.writes, err)
	if err == nil {
		t.Fatal("the paused leader committed")
	}
	if w := mismatch(t, old.Write(context.Background(), late)); w.Have != 9 || w.HaveTerm != 4 {
		t.Fatalf("got %+v", w)
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	db := open(t, config(s.Database(t)))
	write(t, db, fleet(1, 0, 3, 2, 2, t0))
	s.Pause()
	defer s.Resume()
	begin := time.Now()
	done := make(chan error, 1)
	go func() { done <- db.Write(context.Background(), fleet(1, 3, 6, 2, 2, t0)) }()
	time.Sleep(20 * time.Millisecond) // most often it is in the middle then; before or after is right as well
	closed := make(chan error, 1)
	go func() { closed <- db.Close() }()
	if err := <-done; err == nil {
		t.Error("a paused server took a batch")
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("Close took %v with a server that does not answer", d)
	}
	if err := db.Write(context.Background(), fleet(1, 3, 6, 2, 2, t0)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestDeadlockIsTriedAgain: another session holds one of our watermarks and wants
// the other one. Whoever the server picks as the victim, the batches go in once.
func TestDeadlockIsTriedAgain(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: []string{"deadlock_timeout = 100ms"}})
	url := s.Database(t)
	cfg := config(url)
	cfg.Conns = 2
	db := open(t, cfg)
	if err := errors.Join(together(db, []*telemetry.Batch{own(fleet(1, 0, 5, 2, 2, t0)), own(fleet(2, 0, 5, 2, 2, t0))})...); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for from := uint64(5); from < 25; from += 5 {
		other, err := pgx.Connect(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range []string{"begin", "select from flush_watermarks where shard = 2 for update"} {
			if _, err := other.Exec(ctx, sql); err != nil {
				t.Fatal(err)
			}
		}
		begin := t0 + int64(from)*1_000_000_000
		done := make(chan error, 1)
		go func() {
			done <- errors.Join(together(db, []*telemetry.Batch{own(fleet(1, from, from+5, 2, 2, begin)), own(fleet(2, from, from+5, 2, 2, begin))})...)
		}()
		eventually(t, "our transaction waits", func() bool {
			return one[int64](t, url, "select count(*) from pg_locks where not granted") > 0
		})
		_, _ = other.Exec(ctx, "select from flush_watermarks where shard = 1 for update") // one of the two is the victim
		_ = other.Close(ctx)
		if err := <-done; err != nil {
			t.Fatalf("from %d: %v", from, err)
		}
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != 5*2*16 {
		t.Errorf("%d rows, want %d", n, 5*2*16)
	}
}

// TestSerializationFailureIsTriedAgain in a database whose transactions are
// serializable: two leaders write the same shard, over and over.
func TestSerializationFailureIsTriedAgain(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	write(t, open(t, config(url)), fleet(99, 0, 1, 1, 1, t0))
	name := url[strings.LastIndex(url, "/")+1:]
	name, _, _ = strings.Cut(name, "?")
	s.Exec(t, url, "alter database "+name+" set default_transaction_isolation = 'serializable'")
	a, b := open(t, config(url)), open(t, config(url))
	rows := int64(4)
	for from := uint64(0); from < 100; from += 10 {
		var wg sync.WaitGroup
		var errs [2]error
		for i, db := range []*DB{a, b} {
			wg.Go(func() {
				errs[i] = db.Write(context.Background(), fleet(1, from, from+10, 3, 3, t0+int64(from)*1_000_000_000))
			})
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			var w *store.WatermarkError
			switch {
			case err == nil:
				won++
			case errors.As(err, &w):
			case retryable(err): // four times in a row: the shard comes again
			default:
				t.Fatalf("from %d: %v", from, err)
			}
		}
		if at, err := live(context.Background(), a, 1); err != nil || won != 1 || at != from+10 {
			t.Fatalf("from %d: %d won, watermark %d, %v", from, won, at, err)
		}
		rows += 36
	}
	if n := one[int64](t, url, "select count(*) from telemetry"); n != rows {
		t.Errorf("%d rows, want %d", n, rows)
	}
}

// TestStatementTimeoutUndoesTheBatch, and the next attempt finds the watermark
// where it was.
func TestStatementTimeoutUndoesTheBatch(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	cfg := config(url)
	cfg.StatementTimeout = time.Second
	db := open(t, cfg)
	write(t, db, fleet(1, 0, 5, 2, 2, t0))
	s.Exec(t, url, "create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return null; end $$",
		"create trigger slow after insert on telemetry for each statement execute function slow()")
	b := fleet(1, 5, 9, 2, 2, t0+1e9)
	err := db.Write(context.Background(), b)
	if sqlState(err) != codeStatement || !strings.Contains(err.Error(), "timeout") {
		t.Fatalf("a COPY that sleeps: %v", err)
	}
	if settle(t, db, b, err) {
		t.Fatal("the batch was stored")
	}
	s.Exec(t, url, "drop trigger slow on telemetry")
	write(t, db, b)
	if n := one[int64](t, url, "select count(*) from telemetry"); n != 32 {
		t.Errorf("%d rows, want 32", n)
	}
}
