package memory

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/fleet"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// Hooks replace parts of the backend while they are not nil.
type Hooks struct {
	Publish  func(p *telemetry.Publish, done func(telemetry.Result)) bool // true: the hook reports the result
	Readings func(ctx context.Context, q store.Query) ([]store.Point, error)
	Ready    func() error
	Status   func() error
	Ledger   func() error
	Put      func() error
}

// Cluster holds everything in maps.
type Cluster struct {
	*api.Hub

	mu          sync.Mutex
	hooks       Hooks
	points      map[string][]store.Point // by device, sorted by Compare, unique
	quarantine  map[string]api.Quarantined
	anomalies   map[string]telemetry.Anomaly
	counts      api.LedgerCounts
	initiated   bool
	attributes  map[string]api.DeviceAttributes
	maintenance map[string]int64
	target      float64
	ranges      map[string]api.SensorRange
	puts        map[[16]byte]putAnswer
	next        int
}

// New makes an empty cluster.
func New() (*Cluster, error) {
	hub, err := api.NewHub()
	if err != nil {
		return nil, err
	}
	return &Cluster{
		Hub: hub, points: map[string][]store.Point{}, quarantine: map[string]api.Quarantined{},
		anomalies: map[string]telemetry.Anomaly{}, attributes: map[string]api.DeviceAttributes{}, puts: map[[16]byte]putAnswer{}, maintenance: map[string]int64{}, target: 1, ranges: map[string]api.SensorRange{},
	}, nil
}

// Backend is the cluster as the server wants it.
func (c *Cluster) Backend() api.Backend {
	return api.Backend{Ingest: ingest{c}, Cluster: c, Reader: c, Attributes: c, Quarantine: c, Events: c.Hub, Watch: c}
}

// Hook sets the hooks.
func (c *Cluster) Hook(h Hooks) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hooks = h
}

func (c *Cluster) hook() Hooks {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hooks
}

// Insert adds points and returns how many were new.
func (c *Cluster) Insert(device string, points ...store.Point) (added int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range points {
		all := c.points[device]
		i, found := slices.BinarySearchFunc(all, p, func(a, b store.Point) int { return a.Compare(&b) })
		if !found {
			c.points[device] = slices.Insert(all, i, p)
			added++
		}
	}
	return added
}

// AddAnomaly keeps an anomaly and tells the streams.
func (c *Cluster) AddAnomaly(kind api.EventKind, a telemetry.Anomaly) {
	c.mu.Lock()
	c.anomalies[a.ID] = a
	c.mu.Unlock()
	c.Hub.Publish(kind, a)
}

// ingest is apart from Cluster because Hub has a Publish of its own.
type ingest struct{ c *Cluster }

func (i ingest) Publish(p *telemetry.Publish, done func(telemetry.Result)) {
	if h := i.c.hook().Publish; h != nil && h(p, done) {
		return
	}
	r := i.c.apply(p.Payload, p.Received)
	if p.Token && r.Applied+r.Duplicate+r.Quarantined > 0 {
		i.c.mu.Lock()
		r.Writes = []telemetry.Write{{Index: i.c.counts.Received}}
		i.c.mu.Unlock()
	}
	done(r)
}

// message is the part of a telemetry object that this backend understands.
type message struct {
	Device  string             `json:"device_id"`
	Time    string             `json:"timestamp"`
	Sensors map[string]float64 `json:"sensors"`
}

func (c *Cluster) apply(payload []byte, received int64) (r telemetry.Result) {
	var m message
	reason := ""
	if err := json.Unmarshal(payload, &m); err != nil {
		reason = err.Error()
	} else if !telemetry.ValidDeviceID(m.Device) {
		reason = "no device_id"
	}
	at := api.Time(received)
	if reason == "" && m.Time != "" {
		var err error
		if at, err = api.ParseTime(m.Time); err != nil {
			reason = err.Error()
		}
	}
	if reason != "" {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.next++
		id := strconv.Itoa(c.next)
		c.quarantine[id] = api.Quarantined{ID: id, Received: api.Time(received), Reason: reason, Payload: slices.Clone(payload)}
		c.counts.Received++
		c.counts.Quarantined++
		return telemetry.Result{Quarantined: 1, Reason: reason}
	}
	points := make([]store.Point, 0, len(m.Sensors))
	for sensor, value := range m.Sensors {
		points = append(points, store.Point{Time: int64(at), Received: received, Sensor: sensor, Value: value})
	}
	added := c.Insert(m.Device, points...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts.Received++
	if added == 0 && len(points) > 0 {
		c.counts.Duplicate++
		return telemetry.Result{Duplicate: 1}
	}
	c.counts.Applied++
	c.counts.Pending++
	return telemetry.Result{Applied: 1}
}

// ClusterID is "c1".
func (c *Cluster) ClusterID() string { return "c1" }

// Status describes one node and one shard.
func (c *Cluster) Status(context.Context) (api.Status, error) {
	if h := c.hook().Status; h != nil {
		return api.Status{}, h()
	}
	return api.Status{
		ClusterID: "c1", Node: "n0", Version: "test", Store: "memory", ZoneSafe: false,
		Nodes: []api.Node{{ID: "n0", Zone: "a", State: api.NodeAlive, MQTT: "127.0.0.1:1883", HTTP: "127.0.0.1:8080"}},
		Shards: []api.Shard{{
			ID: 0, Leader: "n0", Replicas: []api.Replica{{Node: "n0", Zone: "a", Role: api.RoleLeader}},
			Committed: 12, Applied: 11, Flushed: 10, BacklogBytes: 99,
		}},
	}, nil
}

// Ledger adds up.
func (c *Cluster) Ledger(context.Context) (api.Ledger, error) {
	if h := c.hook().Ledger; h != nil {
		return api.Ledger{}, h()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return api.Ledger{Totals: c.counts, Shards: []api.ShardLedger{{ID: 0, LedgerCounts: c.counts}}}, nil
}

// Ready is what the hook says.
func (c *Cluster) Ready(context.Context) error {
	if h := c.hook().Ready; h != nil {
		return h()
	}
	return nil
}

// Init succeeds once.
func (c *Cluster) Init(_ context.Context, req api.InitRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if req.Shards == 0 {
		return fmt.Errorf("shards is 0: %w", api.ErrInvalid)
	}
	if c.initiated {
		return fmt.Errorf("initialise cluster c1 again: %w", api.ErrConflict)
	}
	c.initiated = true
	return nil
}

// Drain knows n0 only.
func (c *Cluster) Drain(_ context.Context, node telemetry.NodeID) error {
	if node != "n0" {
		return fmt.Errorf("node %q: %w", node, api.ErrNotFound)
	}
	return nil
}

// EndDrain knows n0 only.
func (c *Cluster) EndDrain(ctx context.Context, node telemetry.NodeID) error {
	return c.Drain(ctx, node)
}

// Evict knows n0 only, which is alive.
func (c *Cluster) Evict(_ context.Context, node telemetry.NodeID) error {
	if node != "n0" {
		return fmt.Errorf("node %q: %w", node, api.ErrNotFound)
	}
	return fmt.Errorf("node n0 is alive: %w", api.ErrConflict)
}

// Readings fulfils api.Reader.
func (c *Cluster) Readings(ctx context.Context, q store.Query) ([]store.Point, error) {
	if h := c.hook().Readings; h != nil {
		return h(ctx, q)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	all, ok := c.points[q.Device]
	if !ok {
		return nil, fmt.Errorf("device %q: %w", q.Device, api.ErrNotFound)
	}
	var found []store.Point
	if all = slices.Clone(all); q.Desc {
		slices.Reverse(all)
	}
	for i := range all {
		if len(found) < q.Limit && q.Matches(&all[i]) {
			found = append(found, all[i])
		}
	}
	return found, nil
}

// Buckets fulfils api.Reader.
func (c *Cluster) Buckets(_ context.Context, q store.Aggregate) ([]store.Bucket, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := store.NewBucketer(q)
	for _, p := range c.points[q.Device] {
		if !b.Add(&p) {
			break
		}
	}
	return b.Buckets(), nil
}

// Await fulfils api.Reader: everything acknowledged is there.
func (c *Cluster) Await(_ context.Context, _ string, writes []telemetry.Write) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range writes {
		if w.Shard != 0 || w.Index > c.counts.Received {
			return fmt.Errorf("entry %d of shard %d: %w", w.Index, w.Shard, api.ErrConflict)
		}
	}
	return nil
}

// Devices fulfils api.Reader.
func (c *Cluster) Devices(_ context.Context, q api.DeviceQuery) ([]api.Device, error) {
	var where *fleet.Expression
	if q.Where != "" {
		var err error
		if where, err = fleet.Parse(q.Where, time.UnixMicro(q.Now)); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := slices.Sorted(maps.Keys(c.points))
	i := sort.Search(len(ids), func(i int) bool { return ids[i] > q.After })
	var found []api.Device
	for _, id := range ids[i:] {
		if d := c.describe(id); len(found) < q.Limit && (where == nil || where.Matches(subject{&d})) {
			found = append(found, d)
		}
	}
	return found, nil
}

// subject is a device as expressions see it.
type subject struct{ d *api.Device }

func (s subject) ID() string                          { return s.d.ID }
func (s subject) Seen() (first, last int64)           { return int64(s.d.FirstSeen), int64(s.d.LastSeen) }
func (s subject) Attribute(key string) (string, bool) { v, ok := s.d.Attributes[key]; return v, ok }
func (s subject) Worst() (float64, bool)              { return 0, false }

func (c *Cluster) describe(id string) api.Device {
	d := api.Device{ID: id, Attributes: map[string]string{"model": "m1"}}
	for _, p := range c.points[id] {
		if d.FirstSeen == 0 || api.Time(p.Received) < d.FirstSeen {
			d.FirstSeen = api.Time(p.Received)
		}
		d.LastSeen = max(d.LastSeen, api.Time(p.Received))
	}
	return d
}

// Device fulfils api.Reader.
func (c *Cluster) Device(_ context.Context, id string) (api.Device, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.points[id]; !ok {
		return api.Device{}, fmt.Errorf("device %q: %w", id, api.ErrNotFound)
	}
	d := c.describe(id)
	latest := map[string]api.Reading{}
	for _, p := range c.points[id] { // ascending, so that the last one wins
		latest[p.Sensor] = api.ReadingOf(&p)
	}
	for _, sensor := range slices.Sorted(maps.Keys(latest)) {
		d.Latest = append(d.Latest, latest[sensor])
	}
	for _, a := range c.anomalies {
		if a.Device == id && a.Closed == 0 {
			d.Anomalies = append(d.Anomalies, api.AnomalyOf(&a))
		}
	}
	return d, nil
}

// Anomalies fulfils api.Reader.
func (c *Cluster) Anomalies(_ context.Context, q api.AnomalyQuery) ([]telemetry.Anomaly, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return newest(c.anomalies, q.Limit, q.Matches, func(a *telemetry.Anomaly) api.Position {
		return api.Position{Time: a.Opened, ID: a.ID}
	}), nil
}

// Quarantined fulfils api.Quarantine.
func (c *Cluster) Quarantined(_ context.Context, q api.QuarantineQuery) ([]api.Quarantined, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return newest(c.quarantine, q.Limit, q.Matches, func(m *api.Quarantined) api.Position {
		return api.Position{Time: int64(m.Received), ID: m.ID}
	}), nil
}

func newest[T any](all map[string]T, limit int, matches func(*T) bool, at func(*T) api.Position) []T {
	var found []T
	for _, v := range all {
		if matches(&v) {
			found = append(found, v)
		}
	}
	slices.SortFunc(found, func(a, b T) int {
		p, q := at(&a), at(&b)
		return cmp.Or(cmp.Compare(q.Time, p.Time), cmp.Compare(q.ID, p.ID))
	})
	return found[:min(limit, len(found))]
}

// ReplayQuarantine fulfils api.Quarantine.
func (c *Cluster) ReplayQuarantine(_ context.Context, id string, payload []byte) (telemetry.Result, error) {
	c.mu.Lock()
	m, ok := c.quarantine[id]
	c.mu.Unlock()
	if !ok {
		return telemetry.Result{}, fmt.Errorf("quarantined message %q: %w", id, api.ErrNotFound)
	}
	if payload == nil {
		payload = m.Payload
	}
	r := c.apply(payload, int64(m.Received))
	if r.Quarantined == 0 {
		return r, c.DropQuarantine(context.Background(), id)
	}
	c.mu.Lock() // apply quarantined it anew, the old one stays in its place
	delete(c.quarantine, strconv.Itoa(c.next))
	c.mu.Unlock()
	return r, nil
}

// DropQuarantine fulfils api.Quarantine.
func (c *Cluster) DropQuarantine(_ context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.quarantine[id]; !ok {
		return fmt.Errorf("quarantined message %q: %w", id, api.ErrNotFound)
	}
	delete(c.quarantine, id)
	return nil
}
