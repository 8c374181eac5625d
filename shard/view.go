package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/serverid"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// ErrNotFound answers a question about something the shard does not know.
var ErrNotFound = errors.New("not found")

// Device is a device with its latest readings.
type Device struct {
	ID         string
	FirstSeen  int64 // receive time, microseconds
	LastSeen   int64
	Attributes []telemetry.Attribute
	Latest     []Latest
	Open       []telemetry.Anomaly // open anomalies
	// MaintenanceUntil is the end of the latest maintenance, in receive time; 0 for none.
	MaintenanceUntil int64
}

// Latest is the latest reading of a sensor by event time.
type Latest struct {
	Sensor  string
	Time    int64
	Value   float64
	Score   float32
	Quality telemetry.Quality
}

// ReplicaStatus is how one replica sees its shard.
type ReplicaStatus struct {
	Shard           telemetry.ShardID
	Role            string // leader, voter or nonvoter
	Incarnation     uint32 // of the replica, 1 unless it has begun anew
	Leader          string // peer id it knows as leader
	Term            uint64
	Committed       uint64
	Applied         uint64
	Flushed         uint64 // watermark; of a database the end of what it holds without a gap
	Durable         uint64 // stored as far as this replica knows
	BacklogBytes    int64  // log behind Durable
	PendingRows     uint64
	BacklogRows     uint64 // of them, in the gap that the live lane has left
	LateRows        uint64 // pending in the late lane of a database
	PendingMessages uint64
	Lost            string  // what a database has lost for good, "" when nothing
	Digest          uint64  // of the state at Applied; 0 unless asked for
	Target          float64 // false alarms that a device may raise in 30 days
	Ranges          []Range `json:",omitempty"`
}

// Device describes one device with its latest readings and open anomalies.
func (s *Shard) Device(id string) (Device, error) {
	m := s.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.registry.byID[id]
	if !ok {
		return Device{}, fmt.Errorf("device %q: %w", id, ErrNotFound)
	}
	return m.describe(i, true), nil
}

func (m *machine) describe(i uint32, full bool) Device {
	d := m.registry.devices.peek(i)
	out := Device{ID: d.id, FirstSeen: d.firstSeen, LastSeen: d.lastSeen, Attributes: m.registry.attributes(d)}
	if !full {
		return out
	}
	for n := d.firstSeries; n != none; n = m.registry.series.peek(n).next {
		s := m.registry.series.peek(n)
		if s.known {
			out.Latest = append(out.Latest, Latest{Sensor: m.registry.names[s.sensor], Time: s.time, Value: s.value, Score: s.score, Quality: s.quality})
		}
	}
	w := m.registry.watches.peek(i)
	out.MaintenanceUntil = w.until
	for _, seq := range [...]uint64{w.alert, w.silent} {
		if a := m.alerts.at(seq); a != nil {
			out.Open = append(out.Open, a.Anomaly)
		}
	}
	slices.SortFunc(out.Latest, func(a, b Latest) int { return strings.Compare(a.Sensor, b.Sensor) })
	return out
}

// AnomalyFilter selects anomalies, newest first.
type AnomalyFilter struct {
	Device    string // "" is every device
	Open      *bool  // nil is both
	From, To  int64  // of Opened, microseconds, inclusive and exclusive
	AfterTime int64  // resume behind this position; AfterID "" is the start
	AfterID   string
	Limit     int
}

func (q *AnomalyFilter) matches(a *telemetry.Anomaly) bool {
	return a.Wave == "" && (q.Device == "" || q.Device == a.Device) && (q.Open == nil || *q.Open == (a.Closed == 0)) &&
		a.Opened >= q.From && a.Opened < q.To &&
		(q.AfterID == "" || newestFirst(q.AfterTime, q.AfterID, a.Opened, a.ID) < 0)
}

func newestFirst(t1 int64, id1 string, t2 int64, id2 string) int {
	if c := cmp.Compare(t2, t1); c != 0 {
		return c
	}
	return strings.Compare(id2, id1)
}

// Anomalies lists the shard's anomalies newest first.
func (s *Shard) Anomalies(q AnomalyFilter) []telemetry.Anomaly {
	m := s.fsm.machine
	m.mu.Lock()
	var out []telemetry.Anomaly
	for i := range m.alerts.list {
		if a := &m.alerts.list[i].Anomaly; q.matches(a) {
			out = append(out, *a)
		}
	}
	m.mu.Unlock()
	slices.SortFunc(out, func(a, b telemetry.Anomaly) int { return newestFirst(a.Opened, a.ID, b.Opened, b.ID) })
	return out[:within(q.Limit, len(out))]
}

// Quarantined lists the shard's quarantine.
func (s *Shard) Quarantined() []Quarantined {
	m := s.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.quarantine.items)
}

// RemoveQuarantined settles messages for good.
func (s *Shard) RemoveQuarantined(ctx context.Context, ids ...uint64) error {
	_, err := s.Call(ctx, quarantineRemoveEntry(ids))
	return err
}

// Readings answers from store and unflushed rows as one; not stale, see Verify.
func (s *Shard) Readings(ctx context.Context, q store.Query) ([]store.Point, error) {
	if err := s.Verify(); err != nil {
		return nil, err
	}
	return s.flush.read(ctx, q)
}

// Buckets is Readings in buckets.
func (s *Shard) Buckets(ctx context.Context, q store.Aggregate) ([]store.Bucket, error) {
	if err := s.Verify(); err != nil {
		return nil, err
	}
	return s.flush.aggregate(ctx, q)
}

// Counts is the shard's part of the ledger.
func (s *Shard) Counts() Counts {
	m := s.fsm.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts
}

// leader is whom this replica follows, or itself; none for a candidate. Raft keeps
// the leader that it last heard of in one that was told to stand and then heard of
// that leader once more: it would hold on to a dead one for ever, and keep others
// from standing.
func (s *Shard) leader() string {
	if s.raft.State() == raft.Candidate {
		return ""
	}
	_, id := s.raft.LeaderWithID()
	return serverid.Peer(id)
}

// Status describes this replica. digest asks for the digest of the state too.
func (s *Shard) Status(digest bool) ReplicaStatus {
	m := s.fsm.machine
	st := ReplicaStatus{Shard: s.id, Role: s.role(), Incarnation: serverid.Incarnation(s.server), Term: s.raft.CurrentTerm(), Committed: s.raft.CommitIndex(), Applied: s.raft.AppliedIndex()}
	st.Leader = s.leader()
	m.mu.Lock()
	st.Flushed, st.Durable, st.BacklogRows = m.pending.watermarks.Low(), m.pending.durable, m.pending.gapRows
	st.PendingRows = m.pending.rows[telemetry.LaneLive] + st.BacklogRows
	st.LateRows, st.PendingMessages = m.pending.rows[telemetry.LaneLate], m.counts.Applied-m.counts.Flushed
	st.Target, st.Ranges = m.detector.Params().AlarmsPerDeviceMonth, m.ranges.named(m.registry.names)
	var v *stateView
	if digest {
		v = m.view()
	}
	m.mu.Unlock()
	if digest {
		st.Applied, st.Digest = v.index, v.digest() // raft's index counts entries the machine never sees
		v.release()
	}
	st.BacklogBytes = s.log.BytesSince(st.Durable)
	st.Lost = s.flush.lost()
	return st
}

func (s *Shard) role() string {
	if s.raft.State() == raft.Leader {
		return "leader"
	}
	if s.votes() {
		return "voter"
	}
	return "nonvoter" // or not a member yet
}

// within is how many of n things a limit lets pass; a limit may come from
// another node, so that a negative one must not do harm.
func within(limit, n int) int { return max(0, min(limit, n)) }
