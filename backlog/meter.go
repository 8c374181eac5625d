package backlog

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Level says what the fill of the disk calls for.
type Level string

// The levels.
const (
	OK     Level = "ok"
	Alarm  Level = "alarm"  // somebody should look: bring the store back, or make room
	Refuse Level = "refuse" // what is new is refused, so that what is acknowledged keeps its room
)

// Shares of the budget where a level begins and where it ends.
const (
	alarmFrom, alarmBelow   = 0.80, 0.78
	refuseFrom, refuseBelow = 0.90, 0.88
)

// Config of a Meter.
type Config struct {
	// BytesMax is how much disk the log may take; 0 is what the file system has.
	BytesMax int64
	// Window is over which the growth is taken; at least a few flush intervals,
	// which let the backlog rise and fall.
	Window time.Duration
}

// Validate returns every problem of the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.BytesMax < 0 {
		errs = append(errs, fmt.Errorf("bytes_max is %d: use 0 for what the file system has, or a positive number", c.BytesMax))
	}
	if c.Window <= 0 {
		errs = append(errs, fmt.Errorf("window is %v: use a positive duration, a minute for example", c.Window))
	}
	return errors.Join(errs...)
}

// Sample is what is known at one moment.
type Sample struct {
	Log      int64  // bytes of disk that the log takes, prepared files left out
	Free     int64  // bytes that the file system would still give; < 0: not known
	Waiting  int64  // bytes of log whose rows the store does not hold
	Messages uint64 // that wait
}

// State is what follows from the samples.
type State struct {
	Level    Level   `json:"level" enum:"ok,alarm,refuse"`
	Used     int64   `json:"log_bytes" doc:"disk that the log takes"`
	Budget   int64   `json:"budget_bytes" doc:"disk that it may take: wal.max_mib, or what the file system has"`
	Waiting  int64   `json:"backlog_bytes" doc:"log whose rows the store does not hold yet"`
	Messages uint64  `json:"backlog_messages" doc:"of the shards that the node leads"`
	Rate     float64 `json:"growth_bytes_per_second" doc:"of the backlog"`
	// HoursLeft is until intake is refused; negative: the backlog does not grow.
	HoursLeft float64 `json:"hours_left" doc:"at the present rate, until intake is refused; negative: the backlog does not grow"`
}

// Share is the part of the budget in use, 0..1.
func (s *State) Share() float64 {
	if s.Budget <= 0 {
		return 0
	}
	return float64(s.Used) / float64(s.Budget)
}

// Meter follows one node. All methods may be called from any goroutine.
type Meter struct {
	cfg Config
	m   *metrics

	mu    sync.Mutex
	past  []point // of the last Window, oldest first
	state State
}

type point struct {
	at      time.Time
	waiting int64
}

// New returns a Meter that knows nothing yet and lets everything pass.
func New(reg prometheus.Registerer, cfg Config) (*Meter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("backlog: %w", err)
	}
	return &Meter{cfg: cfg, m: newMetrics(reg), state: State{Level: OK, HoursLeft: -1}}, nil
}

// State is what the latest Step returned.
func (m *Meter) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Refusing reports whether what is new should be refused.
func (m *Meter) Refusing() bool { return m.State().Level == Refuse }

// Step takes one more sample in.
func (m *Meter) Step(now time.Time, s Sample) State {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := State{Used: s.Log, Budget: m.budget(s), Waiting: s.Waiting, Messages: s.Messages, Rate: m.growth(now, s.Waiting), HoursLeft: -1}
	next.Level = level(m.state.Level, next.Share(), next.Budget > 0)
	if next.Rate > 0 && next.Budget > 0 {
		left := max(0, refuseFrom*float64(next.Budget)-float64(next.Used))
		next.HoursLeft = left / next.Rate / time.Hour.Seconds()
	}
	m.state = next
	m.m.set(&next)
	return next
}

func (m *Meter) budget(s Sample) int64 {
	if s.Free < 0 {
		return m.cfg.BytesMax
	}
	all := s.Log + s.Free
	if m.cfg.BytesMax > 0 {
		return min(m.cfg.BytesMax, all)
	}
	return all
}

// growth is in bytes per second over the window, 0 before half of it has passed.
func (m *Meter) growth(now time.Time, waiting int64) float64 {
	m.past = append(m.past, point{now, waiting})
	for len(m.past) > 2 && now.Sub(m.past[1].at) >= m.cfg.Window {
		m.past = m.past[1:]
	}
	first := m.past[0]
	d := now.Sub(first.at)
	if d < m.cfg.Window/2 {
		return 0
	}
	return math.Max(0, float64(waiting-first.waiting)/d.Seconds())
}

func level(now Level, share float64, known bool) Level {
	switch {
	case !known:
		return OK
	case share >= refuseFrom, now == Refuse && share >= refuseBelow:
		return Refuse
	case share >= alarmFrom, now != OK && share >= alarmBelow:
		return Alarm
	}
	return OK
}

type metrics struct{ used, budget, waiting, messages, left, refusing prometheus.Gauge }

func newMetrics(reg prometheus.Registerer) *metrics {
	f := promauto.With(reg)
	gauge := func(name, help string) prometheus.Gauge {
		return f.NewGauge(prometheus.GaugeOpts{Name: "sluice_backlog_" + name, Help: help})
	}
	return &metrics{
		used:     gauge("log_bytes", "Disk that the log takes, prepared files left out."),
		budget:   gauge("budget_bytes", "Disk that the log may take: wal.max_mib, or what the file system has."),
		waiting:  gauge("waiting_bytes", "Log of this node's replicas whose rows the store does not hold yet."),
		messages: gauge("waiting_messages", "Messages of the shards led here that the store does not hold yet."),
		left:     gauge("left_seconds", "Until intake is refused at the present growth; +Inf while the backlog does not grow."),
		refusing: gauge("refusing", "1 while intake is refused because the log takes 90 % of its budget."),
	}
}

func (m *metrics) set(s *State) {
	m.used.Set(float64(s.Used))
	m.budget.Set(float64(s.Budget))
	m.waiting.Set(float64(s.Waiting))
	m.messages.Set(float64(s.Messages))
	left := math.Inf(1)
	if s.HoursLeft >= 0 {
		left = s.HoursLeft * time.Hour.Seconds()
	}
	m.left.Set(left)
	refusing := 0.0
	if s.Level == Refuse {
		refusing = 1
	}
	m.refusing.Set(refusing)
}
