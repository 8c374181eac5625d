package importer

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/internal/publisher"
	"github.com/sluice-iot/sluice/telemetry"
)

// ErrInterrupted says that ctx has ended an import before the end of its input.
var ErrInterrupted = errors.New("import was interrupted")

// Summary is what an import has done.
type Summary struct {
	Counts            // earlier runs included
	Earlier  Counts   // of earlier runs
	Ignored  []string // columns that hold text, not numbers
	Resent   int64    // publishes sent again after a connection was lost
	Elapsed  time.Duration
	Complete bool
	Already  bool // an earlier run had completed it and nothing has come since
}

// Progress is how far a running import is.
type Progress struct {
	Counts            // of this run, of answered lines
	Bytes, Size int64 // of the file as it lies on the disk; Size 0 is not known
	InFlight    int   // publishes without an answer
	Waiting     error // why no node is connected, nil when one is
}

// Importer sends one file.
type Importer struct {
	logger  *slog.Logger
	cfg     Config
	raw     atomic.Int64
	size    atomic.Int64
	flying  atomic.Int64
	mu      sync.Mutex // over what follows
	counts  Counts     // live
	pubs    []*publisher.Publisher
	started bool
}

// New checks the configuration; nothing is opened yet.
func New(logger *slog.Logger, cfg Config) (*Importer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.defaults()
	return &Importer{logger: logger, cfg: cfg}, nil
}

// Progress may be called at any time.
func (im *Importer) Progress() Progress {
	im.mu.Lock()
	defer im.mu.Unlock()
	p := Progress{Counts: im.counts, Bytes: im.raw.Load(), Size: im.size.Load(), InFlight: int(im.flying.Load())}
	for i, pub := range im.pubs {
		err := pub.Err()
		if err == nil {
			p.Waiting = nil
			break
		}
		if i == 0 {
			p.Waiting = err
		}
	}
	return p
}

// run is the state of Run; it belongs to its goroutine.
type run struct {
	im       *Importer
	cfg      *Config
	src      *source
	plan     *plan   // CSV
	ndjson   *ndjson // or messages
	file     *stateFile
	state    state
	ledger   *ledger
	read     position // everything before it is in ledger or batches
	batches  []batch  // per connection
	pubs     []*publisher.Publisher
	repeats  []int // per connection: messages that an earlier run may have sent
	flying   int
	answers  answers
	spare    []answer
	fields   [][]byte
	savedAt  position
	syncedAt time.Time
}

// batch is what waits to become one publish.
type batch struct {
	entry  *entry
	body   []byte // messages, separated by commas
	device string // of the first one
	mixed  bool
}

// Run imports. It may be called once. The summary holds beside an error too.
func (im *Importer) Run(ctx context.Context) (Summary, error) {
	im.mu.Lock()
	again := im.started
	im.started = true
	im.mu.Unlock()
	if again {
		return Summary{}, errors.New("import has run already")
	}
	began := time.Now()
	r := &run{im: im, cfg: &im.cfg, answers: answers{ready: make(chan struct{}, 1)}}
	defer r.close()
	sum := Summary{}
	done, err := r.open()
	if err != nil || done {
		if r.plan != nil {
			sum.Ignored = r.plan.ignored
		}
		sum.Counts, sum.Earlier, sum.Already, sum.Complete = r.state.Counts, r.state.Counts, done, done
		return sum, err
	}
	sum.Earlier = r.state.Counts
	if r.plan != nil {
		sum.Ignored = r.plan.ignored
	}
	err = r.start(ctx)
	if err == nil {
		err = r.transfer(ctx)
	}
	if r.ledger != nil {
		sum.Counts = r.ledger.counts
	}
	for _, p := range r.pubs {
		sum.Resent += p.Stats().Resent
	}
	sum.Elapsed, sum.Complete = time.Since(began), err == nil
	return sum, err
}

// open reads the beginning of the input and the state file; done says that
// there is nothing to do.
func (r *run) open() (done bool, err error) {
	if r.src, err = openSource(r.cfg); err != nil {
		return false, err
	}
	r.im.size.Store(r.src.size)
	var earlier *state
	if r.cfg.State != "" {
		if r.file, earlier, err = openState(r.cfg.State, r.cfg.Restart); err != nil {
			return false, err
		}
	}
	sample, err := r.src.peek()
	if err != nil {
		return false, err
	}
	if err := recognise(r.src.name, sample); err != nil {
		return false, err
	}
	if err := r.understand(sample, earlier); err != nil {
		return false, err
	}
	if earlier == nil {
		r.begin()
		return false, nil
	}
	r.state = *earlier
	if err := r.src.skip(earlier.Line, earlier.Offset); err != nil {
		return false, err
	}
	if _, err := r.src.r.Peek(1); err != nil && earlier.Complete {
		return true, nil
	}
	r.state.Complete = false
	return false, nil
}

// understand finds out what the lines are and whether earlier belongs to them.
func (r *run) understand(sample []byte, earlier *state) error {
	m := r.cfg.Mapping
	now := state{Version: stateVersion, Input: r.src.name, Cluster: r.cfg.Cluster}
	var chosen []string
	headBytes := headBytesMax
	if earlier != nil {
		chosen, headBytes = earlier.Sensors, earlier.HeadBytes
	}
	var err error
	if now.HeadBytes, now.HeadSum, err = r.src.head(headBytes); err != nil {
		return err
	}
	if format := formatOf(r.cfg, sample); format == FormatNDJSON {
		r.ndjson = &ndjson{scanner: telemetry.NewScanner(), fallback: m.DeviceID}
		now.Mapping = fmt.Sprintf("ndjson device-id=%q", m.DeviceID)
	} else {
		if r.plan, err = makePlan(&m, sample, chosen); err != nil {
			return fmt.Errorf("%s: %w", r.src.name, err)
		}
		now.Sensors, now.Mapping = r.plan.sensorNames(), describe(&m)
	}
	if earlier != nil {
		if err := earlier.matches(&now); err != nil {
			return fmt.Errorf("state file %s: %w: begin again with --restart, or name another with --state", r.cfg.State, err)
		}
	}
	r.state = now
	return nil
}

// describe is the mapping as the state file keeps it.
func describe(m *Mapping) string {
	base := ""
	if !m.TimeBase.IsZero() {
		base = m.TimeBase.UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("csv device=%q device-id=%q time=%q unit=%q layout=%q base=%q step=%v sensors=%q no-header=%v columns=%q delimiter=%q",
		m.Device, m.DeviceID, m.Time, m.TimeUnit, m.TimeLayout, base, m.TimeStep, m.Sensors, m.NoHeader, m.Columns, m.Delimiter)
}

// begin prepares the state of a new import.
func (r *run) begin() {
	r.state.Client = newClient()
	for range r.cfg.Connections {
		r.state.PacketIDs = append(r.state.PacketIDs, 1)
	}
	r.state.Line, r.state.Offset, r.state.Counts = 0, 0, Counts{}
}

// start connects.
func (r *run) start(ctx context.Context) error {
	n := len(r.state.PacketIDs)
	r.ledger = newLedger(n)
	r.ledger.at = position{r.state.Line, r.state.Offset}
	r.ledger.counts = r.state.Counts
	copy(r.ledger.next, r.state.PacketIDs)
	r.read, r.savedAt = r.ledger.at, r.ledger.at
	r.batches, r.repeats = make([]batch, n), make([]int, n)
	if r.state.Line > 0 {
		for i := range r.repeats {
			r.repeats[i] = unsavedMax
		}
	}
	if err := r.store(true); err != nil { // before anything is sent under its client ids
		return err
	}
	for i := range n {
		at := i % len(r.cfg.Brokers)
		p, err := publisher.New(r.im.logger, publisher.Config{
			Brokers: append(append([]string{}, r.cfg.Brokers[at:]...), r.cfg.Brokers[:at]...), ClientID: fmt.Sprintf("%s-%d", r.state.Client, i),
			Window: r.cfg.InFlight, FirstPacketID: r.state.PacketIDs[i], BufferBytes: 64 << 10,
		})
		if err != nil {
			return err
		}
		r.pubs = append(r.pubs, p)
	}
	r.im.mu.Lock()
	r.im.pubs = r.pubs
	r.im.mu.Unlock()
	wait, cancel := context.WithTimeout(ctx, r.cfg.StartTimeout)
	defer cancel()
	if err := r.pubs[0].Connected(wait); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("%w before it began", ErrInterrupted)
		}
		return fmt.Errorf("no node can be reached within %v: %w: check --broker or --api, and that the cluster runs", r.cfg.StartTimeout, r.pubs[0].Err())
	}
	return nil
}

func (r *run) close() {
	var wg sync.WaitGroup
	for _, p := range r.pubs {
		wg.Go(func() { _ = p.Close() }) // it has no error to give
	}
	wg.Wait()
	if r.file != nil {
		r.file.close()
	}
	if r.src != nil {
		r.src.close()
	}
}

// connOf is where a device's publishes go, in every run the same.
func (r *run) connOf(device string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(device)) // never fails
	return int(h.Sum32() % uint32(len(r.pubs)))
}
