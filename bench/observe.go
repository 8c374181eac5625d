package bench

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/pprof/profile"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sluice-iot/sluice/devcluster"
)

// observation is what the nodes have spent and written so far, all together.
type observation struct {
	cpu                          time.Duration
	logBytes, blockBytes, blocks float64
	snapshotBytes, snapshots     float64
}

func observe(ctx context.Context, c *devcluster.Cluster) (o observation, err error) {
	for _, n := range c.Nodes() {
		cpu, err := cpuOf(n.PID)
		if err != nil {
			return o, err
		}
		o.cpu += cpu
		v, err := scrape(ctx, n, "sluice_wal_written_bytes_total", "sluice_ingest_block_bytes_total", "sluice_ingest_blocks_total", "sluice_shard_snapshot_written_bytes_total", "sluice_shard_snapshots_total")
		if err != nil {
			return o, err
		}
		o.logBytes, o.blockBytes, o.blocks = o.logBytes+v[0], o.blockBytes+v[1], o.blocks+v[2]
		o.snapshotBytes, o.snapshots = o.snapshotBytes+v[3], o.snapshots+v[4]
	}
	return o, nil
}

// scrape reads metrics of a node that have no labels.
func scrape(ctx context.Context, n *devcluster.Node, names ...string) ([]float64, error) {
	cl, err := n.Client()
	if err != nil {
		return nil, err
	}
	b, err := cl.Metrics(ctx)
	cl.Close()
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	f, err := parser.TextToMetricFamilies(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("read metrics of %s: %w", n.ID, err)
	}
	out := make([]float64, len(names))
	for i, name := range names {
		m := f[name].GetMetric()
		if len(m) == 0 {
			return nil, fmt.Errorf("%s has no metric %s", n.ID, name)
		}
		out[i] = m[0].GetCounter().GetValue() + m[0].GetGauge().GetValue() // it is one of them
	}
	return out, nil
}

// clockTick is the kernel's unit of CPU time for user space (USER_HZ).
const clockTick = 10 * time.Millisecond

// cpuOf is what a process has spent so far.
func cpuOf(pid int) (time.Duration, error) {
	user, system, err := cpuParts(pid)
	return user + system, err
}

// cpuParts reads user and system time of a process (proc(5), fields 14 and 15).
func cpuParts(pid int) (user, system time.Duration, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("read CPU time: %w", err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var ticks [2]time.Duration
	for i := range ticks {
		n, err := strconv.Atoi(fields[11+i])
		if err != nil {
			return 0, 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks[i] = time.Duration(n) * clockTick
	}
	return ticks[0], ticks[1], nil
}

// profiled is where the CPU time of all nodes went, as shares of the whole.
type profiled struct {
	stages map[string]float64
	err    error
}

func profileAll(ctx context.Context, c *devcluster.Cluster, d time.Duration) chan profiled {
	out := make(chan profiled, 1)
	go func() {
		var mu sync.Mutex
		var wg sync.WaitGroup
		p := profiled{stages: map[string]float64{}}
		for _, n := range c.Nodes() {
			wg.Go(func() {
				prof, err := fetchProfile(ctx, n.Debug, d)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					p.err = fmt.Errorf("profile %s: %w", n.ID, err)
					return
				}
				addStages(p.stages, prof)
			})
		}
		wg.Wait()
		total := 0.0
		for _, v := range p.stages {
			total += v
		}
		for s := range p.stages {
			p.stages[s] /= max(total, 1)
		}
		out <- p
	}()
	return out
}

func fetchProfile(ctx context.Context, addr string, d time.Duration) (*profile.Profile, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", addr, max(1, int(d.Seconds()))), nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // read whole by Parse
	return profile.Parse(res.Body)
}

// The stages of a message, in its order.
var stageOrder = []string{
	"broker (sockets, MQTT)", "parse", "gather and encode block", "transport", "raft", "log (write, fsync)",
	"apply (dedup, state)", "detectors", "flush (decode, sort, segments)", "runtime (GC, scheduler)", "other",
}

// stageOf maps a part of a function's name to its stage; the first one that
// matches a frame decides, flush before everything because it uses the rest.
var stageOf = []struct{ part, stage string }{
	{"sluice/anomaly.", "detectors"},
	{"sluice/telemetry/block.(*Builder)", "gather and encode block"},
	{"sluice/telemetry/block.(*Block)", "apply (dedup, state)"},
	{"sluice/telemetry.", "parse"},
	{"sluice/ingest.", "gather and encode block"},
	{"sluice/wal.", "log (write, fsync)"},
	{"sluice/internal/vfs.", "log (write, fsync)"},
	{"sluice/cluster/mux.", "transport"},
	{"sluice/shard.(*machine)", "apply (dedup, state)"},
	{"sluice/shard.(*fsm)", "apply (dedup, state)"},
	{"sluice/broker.", "broker (sockets, MQTT)"},
	{"mochi-mqtt", "broker (sockets, MQTT)"},
	{"hashicorp/raft.", "raft"},
	{"sluice/shard.", "raft"},
	{"sluice/", "other"},
}

// addStages adds a profile's CPU time to the stages.
func addStages(stages map[string]float64, p *profile.Profile) {
	for _, s := range p.Sample {
		stages[stageOfSample(s)] += float64(s.Value[len(s.Value)-1])
	}
}

func stageOfSample(s *profile.Sample) string {
	stage := ""
	for _, loc := range s.Location {
		for _, line := range loc.Line {
			name := line.Function.Name
			if strings.Contains(name, "sluice/shard.(*flusher)") || strings.Contains(name, "sluice/store/") {
				return "flush (decode, sort, segments)"
			}
			for i := 0; stage == "" && i < len(stageOf); i++ {
				if strings.Contains(name, stageOf[i].part) {
					stage = stageOf[i].stage
				}
			}
		}
	}
	if stage == "" {
		return "runtime (GC, scheduler)"
	}
	return stage
}
