package api

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// Backend is what the server asks. All parts are cluster-wide: the
// implementation finds the leaders of shards and asks other nodes. Every part
// but Database and Gatherer is required. All methods are called from many goroutines.
type Backend struct {
	Ingest     Ingestor
	Cluster    Cluster
	Reader     Reader
	Attributes Attributes
	Quarantine Quarantine
	Events     Events
	Database   Database // nil with the embedded store
	Watch      Watch
	Gatherer   prometheus.Gatherer // what /metrics shows; nil is prometheus.DefaultGatherer
}

// Ingestor takes messages into the log.
type Ingestor interface {
	// Publish submits the payload of one line. done is called exactly once, from
	// any goroutine, possibly before Publish returns, and never blocks. The
	// Ingestor owns p and its Payload until then. Publish may wait while the way
	// into the log is full (that is the back-pressure), but an outcome that
	// stays open is reported as Unknown after the commit timeout.
	//
	// Client is the Idempotency-Key with the line's high bits appended, and
	// PacketID its low 16 bits, so that equal lines of one request differ; Dup
	// is set whenever a key was given.
	Publish(p *telemetry.Publish, done func(telemetry.Result))
}

// Cluster tells how the cluster is and carries out the operator's acts.
type Cluster interface {
	// ClusterID is "" until the cluster is initialised, and does not change after.
	ClusterID() string
	// Status describes nodes and shards as this node knows them. It answers
	// without a quorum too: what is not known is left empty.
	Status(ctx context.Context) (Status, error)
	// Ledger adds up all shards. An UnavailableError says that one did not answer.
	Ledger(ctx context.Context) (Ledger, error)
	// Ready is nil when every shard this node can see has a leader and the node
	// can take publishes; otherwise its text says what is missing.
	Ready(ctx context.Context) error
	// Init bootstraps the cluster, once in its life; ErrConflict afterwards,
	// ErrInvalid for a request that cannot be carried out.
	Init(ctx context.Context, req InitRequest) error
	// Drain begins to move leaders, and replicas where the other nodes can take
	// them, off a node, and returns when that is recorded; ErrNotFound for a node
	// that is not registered.
	Drain(ctx context.Context, node telemetry.NodeID) error
	// EndDrain lets a node be used again, and returns when that is recorded; nothing
	// for a node that is not draining. ErrNotFound as above.
	EndDrain(ctx context.Context, node telemetry.NodeID) error
	// Evict removes a node for ever and returns when that is recorded; ErrNotFound
	// as above, ErrConflict for one that is alive and holds replicas.
	Evict(ctx context.Context, node telemetry.NodeID) error
}

// Reader answers questions about devices, flushed and unflushed rows as one.
// Every method returns an UnavailableError rather than a partial answer.
type Reader interface {
	// Readings answers in the order of q.Compare, at most q.Limit (up to
	// ReadingsLimitMax + 1). Equal points come once. A device that never
	// published gives ErrNotFound or no points.
	Readings(ctx context.Context, q store.Query) ([]store.Point, error)
	// Buckets is Readings in buckets, in ascending order of store.Bucket.
	Buckets(ctx context.Context, q store.Aggregate) ([]store.Bucket, error)
	// Await returns when what is asked after it holds acknowledged writes: those
	// that concern a device, or all when device is "". ErrConflict for a write
	// that this cluster does not have.
	Await(ctx context.Context, device string, writes []telemetry.Write) error
	// Devices lists devices in ascending byte order of their ids, see DeviceQuery.
	// Latest and Anomalies may be left empty.
	Devices(ctx context.Context, q DeviceQuery) ([]Device, error)
	// Device describes one device in full; ErrNotFound when it is not known.
	Device(ctx context.Context, id string) (Device, error)
	// Anomalies answers newest first, see AnomalyQuery.
	Anomalies(ctx context.Context, q AnomalyQuery) ([]telemetry.Anomaly, error)
}

// DeviceQuery selects devices.
type DeviceQuery struct {
	After string // resume behind this id; "" is the start
	Limit int    // > 0
	Where string // an expression of package fleet that parses; "" is all
	Now   int64  // microseconds, what times before now in Where refer to
}

// Position is a place in a list ordered newest first: by time, then by id, both
// descending. Anomalies are ordered by Opened, quarantine by Received.
type Position struct {
	Time int64 // microseconds
	ID   string
}

// Before reports whether p comes earlier than q in a list, newest first.
func (p Position) Before(q Position) bool {
	return p.Time > q.Time || p.Time == q.Time && p.ID > q.ID
}

// AnomalyQuery selects anomalies by the time they opened, newest first.
type AnomalyQuery struct {
	Device string // "" is every device
	Open   *bool  // nil is both
	From   int64  // microseconds, inclusive; math.MinInt64 is open
	To     int64  // microseconds, exclusive; math.MaxInt64 is open
	Limit  int    // > 0
	After  *Position
}

// Matches reports whether an anomaly belongs to the answer.
func (q *AnomalyQuery) Matches(a *telemetry.Anomaly) bool {
	return (q.Device == "" || q.Device == a.Device) && (q.Open == nil || *q.Open == (a.Closed == 0)) &&
		a.Opened >= q.From && a.Opened < q.To &&
		(q.After == nil || q.After.Before(Position{Time: a.Opened, ID: a.ID}))
}

// Quarantine lists and settles what could not be parsed.
type Quarantine interface {
	// Quarantined answers newest first, see QuarantineQuery.
	Quarantined(ctx context.Context, q QuarantineQuery) ([]Quarantined, error)
	// ReplayQuarantine publishes a quarantined message again, with payload in
	// place of its own unless payload is nil. It leaves the quarantine only when
	// the result holds no quarantined, refused or unknown message.
	// ErrNotFound when there is no such message.
	ReplayQuarantine(ctx context.Context, id string, payload []byte) (telemetry.Result, error)
	// DropQuarantine removes a message for good; ErrNotFound as above.
	DropQuarantine(ctx context.Context, id string) error
}

// QuarantineQuery selects quarantined messages by receipt, newest first.
type QuarantineQuery struct {
	Device string // "" is every device
	From   int64  // microseconds, inclusive; math.MinInt64 is open
	To     int64  // microseconds, exclusive; math.MaxInt64 is open
	Limit  int    // > 0
	After  *Position
}

// Matches reports whether a quarantined message belongs to the answer.
func (q *QuarantineQuery) Matches(m *Quarantined) bool {
	return (q.Device == "" || q.Device == m.Device) && int64(m.Received) >= q.From && int64(m.Received) < q.To &&
		(q.After == nil || q.After.Before(Position{Time: int64(m.Received), ID: m.ID}))
}

// Events is the live feed of anomalies of the whole cluster. Hub implements it.
type Events interface {
	// Subscribe delivers what follows the event with the id after, "" is from
	// now on. When after is too old or came from another node, an EventGap comes
	// first and then everything still remembered: a repeat is possible, a
	// silent skip is not. The implementation never waits for a subscriber: it
	// closes the channel of one that has fallen behind. cancel is idempotent
	// and must be called.
	Subscribe(after string) (events <-chan Event, cancel func())
}

// EventKind says what happened to an anomaly.
type EventKind string

// The kinds of events; the text is the name of the server-sent event.
const (
	EventOpened  EventKind = "opened"
	EventChanged EventKind = "changed" // worse than before, still open
	EventClosed  EventKind = "closed"
	EventGap     EventKind = "gap" // events may be missing here: list /api/v1/anomalies
)

// Event is one change of an anomaly. ID is for Last-Event-ID and belongs to the
// node that sends it.
type Event struct {
	ID      string
	Kind    EventKind
	Anomaly telemetry.Anomaly // zero for EventGap
}
