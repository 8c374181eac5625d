package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sluice-iot/sluice/devcluster"
)

// copies are the COPYs of all nodes so far.
type copies struct{ count, rows float64 }

// mean is the mean number of rows of the COPYs since before.
func (c copies) mean(before copies) float64 {
	if c.count <= before.count {
		return 0
	}
	return (c.rows - before.rows) / (c.count - before.count)
}

func (o *outageRun) copied(ctx context.Context) (out copies, err error) {
	err = o.patiently(ctx, func(ctx context.Context) (err error) {
		out, err = o.copiedNow(ctx)
		return err
	})
	return out, err
}

func (o *outageRun) copiedNow(ctx context.Context) (out copies, err error) {
	const name = "sluice_postgres_copy_rows"
	for _, n := range o.cluster.Nodes() {
		cl, err := n.Client()
		if err != nil {
			return out, err
		}
		b, err := cl.Metrics(ctx)
		cl.Close()
		if err != nil {
			return out, err
		}
		parser := expfmt.NewTextParser(model.LegacyValidation)
		f, err := parser.TextToMetricFamilies(bytes.NewReader(b))
		if err != nil {
			return out, fmt.Errorf("read metrics of %s: %w", n.ID, err)
		}
		m := f[name].GetMetric()
		if len(m) == 0 {
			return out, fmt.Errorf("%s has no metric %s", n.ID, name)
		}
		h := m[0].GetHistogram()
		out.count, out.rows = out.count+float64(h.GetSampleCount()), out.rows+h.GetSampleSum()
	}
	return out, nil
}

// Trend is the resident memory of a node over a phase.
type Trend struct {
	Node        string  `json:"node"`
	First       float64 `json:"first_mib"`
	Last        float64 `json:"last_mib"`
	Most        float64 `json:"most_mib"`
	MiBPerHour  float64 `json:"mib_per_hour"` // least squares over the second half
	samples     []float64
	sampledFrom []float64 // seconds
}

const memoryTick = time.Second

// watchMemory samples the nodes' memory until the function it returns is called.
func watchMemory(c *devcluster.Cluster) func() []Trend {
	nodes := c.Nodes()
	trends := make([]Trend, len(nodes))
	stop, done := make(chan struct{}), make(chan struct{})
	start := time.Now()
	go func() {
		defer close(done)
		tick := time.NewTicker(memoryTick)
		defer tick.Stop()
		for {
			for i, n := range nodes {
				if mib, err := residentMiB(n.PID); err == nil { // a process that ended shows in the loads
					trends[i].Node = n.ID
					trends[i].add(time.Since(start), mib)
				}
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() []Trend {
		close(stop)
		<-done
		for i := range trends {
			trends[i].fit()
		}
		return trends
	}
}

func (t *Trend) add(at time.Duration, mib float64) {
	t.samples, t.sampledFrom = append(t.samples, mib), append(t.sampledFrom, at.Seconds())
}

// fit computes what is shown; the first half is left out of the slope, in which
// caches and pools still fill.
func (t *Trend) fit() {
	n := len(t.samples)
	if n == 0 {
		return
	}
	t.First, t.Last = t.samples[0], t.samples[n-1]
	for _, v := range t.samples {
		t.Most = max(t.Most, v)
	}
	x, y := t.sampledFrom[n/2:], t.samples[n/2:]
	var mx, my, sxy, sxx float64
	for i := range x {
		mx, my = mx+x[i]/float64(len(x)), my+y[i]/float64(len(y))
	}
	for i := range x {
		sxy, sxx = sxy+(x[i]-mx)*(y[i]-my), sxx+(x[i]-mx)*(x[i]-mx)
	}
	if sxx > 0 {
		t.MiBPerHour = sxy / sxx * time.Hour.Seconds()
	}
}

// residentMiB reads VmRSS of a process (proc(5)).
func residentMiB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("read memory: the process has none")
}

// lagProbe waits for some of the rows in the database.
type lagProbe struct {
	db    *pgx.Conn
	hist  *hdrhistogram.Histogram
	every time.Duration // samples are so far apart at least
	stop  context.CancelFunc
	done  chan struct{}

	mu   sync.Mutex
	last time.Time
	wait []sentRow // in the order of sending
}

type sentRow struct {
	device    string
	at, since time.Time // that the row bears, and from when it is waited for
}

const (
	lagSample = 500 * time.Millisecond
	lagPoll   = 20 * time.Millisecond
	// lagWaitMax bounds what is looked for in one query.
	lagWaitMax = 512
)

func newLagProbe(ctx context.Context, url string, every time.Duration) (*lagProbe, error) {
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	p := &lagProbe{db: db, every: every, hist: hdrhistogram.New(1, lagMicrosMax, 3), stop: stop, done: make(chan struct{})}
	go p.run(ctx)
	return p, nil
}

// lagMicrosMax is the end of the histogram: a day.
const lagMicrosMax = 24 * 3600 * 1_000_000

// sent is told of every message that is sent, and waits from then on.
func (p *lagProbe) sent(device string, at time.Time) { p.sample(sentRow{device, at, at}) }

// acked is told of every message that is acknowledged, and waits from then on.
func (p *lagProbe) acked(device string, at time.Time) { p.sample(sentRow{device, at, time.Now()}) }

func (p *lagProbe) sample(r sentRow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.since.Sub(p.last) < p.every || len(p.wait) >= lagWaitMax {
		return
	}
	p.last = r.since
	p.wait = append(p.wait, r)
}

// settle waits until what was sampled has arrived.
func (p *lagProbe) settle(ctx context.Context) error {
	for end := time.Now().Add(flushDeadline); ; {
		p.mu.Lock()
		left := len(p.wait)
		p.mu.Unlock()
		if left == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d sampled rows are not in the database %v after their acknowledgement", left, flushDeadline)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lagPoll):
		}
	}
}

func (p *lagProbe) run(ctx context.Context) {
	defer close(p.done)
	tick := time.NewTicker(lagPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			p.look(ctx)
		}
	}
}

func (p *lagProbe) look(ctx context.Context) {
	p.mu.Lock()
	wait := append([]sentRow(nil), p.wait...)
	p.mu.Unlock()
	if len(wait) == 0 {
		return
	}
	devices, times := make([]string, len(wait)), make([]time.Time, len(wait))
	for i, w := range wait {
		devices[i], times[i] = w.device, w.at
	}
	const q = `select array_agg(w.i) from unnest($1::text[], $2::timestamptz[]) with ordinality as w(d, t, i)
		where exists (select from telemetry where device_id = w.d and time = w.t)`
	var there []int
	if err := p.db.QueryRow(ctx, q, devices, times).Scan(&there); err != nil {
		return // looked for again
	}
	now := time.Now()
	arrived := map[sentRow]bool{}
	for _, i := range there {
		w := wait[i-1]
		arrived[w] = true
		_ = p.hist.RecordValue(min(max(0, now.Sub(w.since).Microseconds()), lagMicrosMax)) // within its bounds
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.wait[:0]
	for _, w := range p.wait {
		if !arrived[w] {
			kept = append(kept, w)
		}
	}
	p.wait = kept
}

// end returns what was seen.
func (p *lagProbe) end() *hdrhistogram.Histogram {
	p.stop()
	<-p.done
	_ = p.db.Close(context.Background()) // read only
	return p.hist
}
