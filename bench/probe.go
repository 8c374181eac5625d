package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Probe is a steady load whose latency is told second by second. It runs in a process
// of its own: what a scenario does beside it must cost the nodes' time, not the
// probe's.
type Probe struct {
	Addrs    []string
	Rate     float64 // publishes per second
	Duration time.Duration
}

// ProbeSecond is one second of a probe.
type ProbeSecond struct {
	From time.Time `json:"from"`
	Second
}

const probeConnections = 50

// RunProbe publishes and writes a line of JSON per second that had an acknowledgement.
func RunProbe(ctx context.Context, p Probe, out io.Writer) error {
	b := bins{began: time.Now()}
	_, err := Run(ctx, Load{Addrs: p.Addrs, Connections: probeConnections, Window: 64, Rate: p.Rate, Duration: p.Duration, Prefix: "stays", Latency: b.add})
	enc := json.NewEncoder(out)
	for i, h := range b.hists {
		second := ProbeSecond{From: b.began.Add(time.Duration(i) * time.Second),
			Second: Second{Acked: int(h.TotalCount()), P50: quantile(h, 50), P99: quantile(h, 99), Max: quantile(h, 100)}}
		err = errors.Join(err, enc.Encode(second))
	}
	return err
}

// bins are latencies by the second in which they ended.
type bins struct {
	began time.Time
	mu    sync.Mutex
	hists []*hdrhistogram.Histogram
}

func (b *bins) add(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := int(time.Since(b.began) / time.Second)
	for len(b.hists) <= n {
		b.hists = append(b.hists, hdrhistogram.New(1, latencyMaxMicros, 2))
	}
	// A value beyond the histogram's end is recorded at its end.
	_ = b.hists[n].RecordValue(min(d.Microseconds(), latencyMaxMicros))
}

// runProbe runs the probe as a child process.
func runProbe(ctx context.Context, binary string, p Probe) ([]ProbeSecond, error) {
	cmd := exec.CommandContext(ctx, binary, "bench", "probe", "--addr", strings.Join(p.Addrs, ","), "--rate", fmt.Sprint(p.Rate), "--duration", p.Duration.String())
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run the probe: %w", err)
	}
	var out []ProbeSecond
	for dec := json.NewDecoder(strings.NewReader(string(b))); dec.More(); {
		var s ProbeSecond
		if err := dec.Decode(&s); err != nil {
			return nil, fmt.Errorf("read the probe's lines: %w", err)
		}
		out = append(out, s)
	}
	return out, nil
}
