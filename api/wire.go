package api

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/backlog"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

// States of a node.
const (
	NodeAlive    = "alive"
	NodeSuspect  = "suspect"
	NodeDead     = "dead"
	NodeDraining = "draining"
)

// Roles of a replica.
const (
	RoleLeader   = "leader"
	RoleVoter    = "voter"
	RoleNonvoter = "nonvoter"
)

// Status answers GET /api/v1/status.
type Status struct {
	ClusterID string           `json:"cluster_id" doc:"empty until the cluster is initialised"`
	Node      telemetry.NodeID `json:"node" doc:"the node that answers"`
	Version   string           `json:"version"`
	Store     string           `json:"store" example:"parquet" doc:"where rows go: parquet or postgres"`
	ZoneSafe  bool             `json:"zone_safe" doc:"no shard would lose its quorum with one zone"`
	Alarms    []string         `json:"alarms,omitempty" doc:"what an operator should look at"`
	Nodes     []Node           `json:"nodes" nullable:"false"`
	Shards    []Shard          `json:"shards" nullable:"false"`
	Moves     []Move           `json:"moves,omitempty" doc:"replicas on their way to another node"`
}

// Move is a replica of a shard on its way.
type Move struct {
	Shard telemetry.ShardID `json:"shard"`
	From  telemetry.NodeID  `json:"from" doc:"empty for a replica more"`
	To    telemetry.NodeID  `json:"to" doc:"empty for a replica less"`
}

// Node is one member of the cluster.
type Node struct {
	ID    telemetry.NodeID `json:"id" example:"n0"`
	Zone  telemetry.Zone   `json:"zone" example:"a"`
	State string           `json:"state" enum:"alive,suspect,dead,draining"`
	MQTT  string           `json:"mqtt" example:"127.0.0.1:1883"`
	HTTP  string           `json:"http" example:"127.0.0.1:8080"`
	// Backlog is nil when the node did not say.
	Backlog *backlog.State `json:"backlog,omitempty" doc:"what waits for the store, and the disk it takes"`
	Damages []Damage       `json:"damages,omitempty" doc:"what its process has found damaged on its disk, the latest 32, repaired or not"`
}

// Damage is rot that a node has found on its disk.
type Damage struct {
	Time Time   `json:"time" doc:"when it was found"`
	Kind string `json:"kind" enum:"log,snapshot,segment"`
	What string `json:"what" doc:"which file, and what is wrong with it"`
}

// Shard is one raft group as its leader sees it.
type Shard struct {
	ID           telemetry.ShardID `json:"id"`
	Leader       telemetry.NodeID  `json:"leader" doc:"empty while there is none"`
	Replicas     []Replica         `json:"replicas" nullable:"false"`
	Committed    uint64            `json:"committed" doc:"raft index"`
	Applied      uint64            `json:"applied" doc:"raft index"`
	Flushed      uint64            `json:"flushed" doc:"raft index"`
	BacklogBytes int64             `json:"backlog_bytes" doc:"log that is not yet flushed"`
}

// Replica is one copy of a shard.
type Replica struct {
	Node telemetry.NodeID `json:"node"`
	Zone telemetry.Zone   `json:"zone"`
	Role string           `json:"role" enum:"leader,voter,nonvoter"`
	// Incarnation is 1 until the replica has begun anew; 0 where it has not answered.
	Incarnation uint32 `json:"incarnation,omitempty"`
}

// LedgerCounts are messages (one telemetry object each):
// Received = Refused + Quarantined + Duplicate + Applied and Applied = Flushed + Pending.
type LedgerCounts struct {
	Received    uint64 `json:"received"`
	Refused     uint64 `json:"refused"`
	Quarantined uint64 `json:"quarantined"`
	Duplicate   uint64 `json:"duplicate"`
	Applied     uint64 `json:"applied"`
	Flushed     uint64 `json:"flushed"`
	Pending     uint64 `json:"pending"`
}

// Add adds the counts of d.
func (c *LedgerCounts) Add(d LedgerCounts) {
	c.Received += d.Received
	c.Refused += d.Refused
	c.Quarantined += d.Quarantined
	c.Duplicate += d.Duplicate
	c.Applied += d.Applied
	c.Flushed += d.Flushed
	c.Pending += d.Pending
}

// ShardLedger is one shard's part of the ledger.
type ShardLedger struct {
	ID telemetry.ShardID `json:"id"`
	LedgerCounts
}

// Ledger answers GET /api/v1/ledger. Refused is kept per node, so that the
// totals may hold more of it (and of Received) than the shards together.
type Ledger struct {
	Totals LedgerCounts  `json:"totals"`
	Shards []ShardLedger `json:"shards" nullable:"false"`
}

// InitRequest is the body of POST /api/v1/cluster/init.
type InitRequest struct {
	Shards   uint32             `json:"shards" example:"24" doc:"fixed for the life of the cluster"`
	Replicas int                `json:"replicas,omitempty" doc:"copies of each shard, 0 is 3 or as many as there are nodes"`
	Nodes    []telemetry.NodeID `json:"nodes,omitempty" doc:"the first members; empty is every node that is alive"`
}

// Reading is one stored value. Quality is a bit set, absent when 0: 1 time of
// receipt, 2 from the future, 4 detector still learning, 8 was a boolean.
type Reading struct {
	Time    Time              `json:"time"`
	Sensor  string            `json:"sensor" example:"temperature"`
	Value   Float             `json:"value" example:"21.52"`
	Score   float32           `json:"score" example:"0.13"`
	Quality telemetry.Quality `json:"quality,omitempty"`
}

// ReadingOf is the wire form of a stored point.
func ReadingOf(p *store.Point) Reading {
	return Reading{Time: Time(p.Time), Sensor: p.Sensor, Value: Float(p.Value), Score: p.Score, Quality: p.Quality}
}

// Anomaly is an alert about a device; the sensor is the one with the largest
// share, empty for missing data.
type Anomaly struct {
	ID       string `json:"id"`
	DeviceID string `json:"device_id"`
	Sensor   string `json:"sensor"`
	Opened   Time   `json:"opened"`
	Closed   *Time  `json:"closed" doc:"null while open"`
	Severity Float  `json:"severity" doc:"0 to 100, the worst so far"`
	Cause    string `json:"cause" example:"spike"`
	Value    Float  `json:"value" doc:"the reading at the worst moment"`
	Expected Float  `json:"expected"`
	Low      Float  `json:"low"`
	High     Float  `json:"high"`
	Grade    string `json:"grade" enum:"normal,notice,warning,critical" doc:"the severity in a word"`
	Shares   string `json:"shares,omitempty" example:"temperature 0.62, pressure 0.38" doc:"of the sensors in the surprise, where several took part; for listed anomalies of the last weeks"`
	Normal   bool   `json:"normal,omitempty" doc:"an operator said that it was none"`
}

// TransformSchema says that closed may be null, which no tag can say of a Time.
func (Anomaly) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	s.Properties["closed"].Nullable = true
	return s
}

// AnomalyOf is the wire form of an anomaly.
func AnomalyOf(a *telemetry.Anomaly) Anomaly {
	w := Anomaly{
		ID: a.ID, DeviceID: a.Device, Sensor: a.Sensor, Opened: Time(a.Opened),
		Severity: Float(a.Severity), Cause: a.Cause,
		Value: Float(a.Value), Expected: Float(a.Expected), Low: Float(a.Low), High: Float(a.High),
		Grade: anomaly.Grade(a.Severity), Shares: a.Shares, Normal: a.Normal,
	}
	if a.Closed != 0 {
		closed := Time(a.Closed)
		w.Closed = &closed
	}
	return w
}

// Device is what the cluster knows of a device. A list of devices leaves Latest
// and Anomalies out.
type Device struct {
	ID         string            `json:"id"`
	FirstSeen  Time              `json:"first_seen"`
	LastSeen   Time              `json:"last_seen"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Latest     []Reading         `json:"latest,omitempty" doc:"the last reading of each sensor by device time, sorted by sensor"`
	Anomalies  []Anomaly         `json:"anomalies,omitempty" doc:"the open ones"`
	// MaintenanceUntil is absent when none is under way.
	MaintenanceUntil *Time `json:"maintenance_until,omitempty" doc:"anomalies before it are not raised"`
}

// Quarantined is one message that could not be taken as telemetry.
type Quarantined struct {
	ID       string
	Device   string // the topic's device, "" when there is none
	Topic    string // "" over HTTP
	Received Time
	Reason   string
	Payload  []byte
}

// quarantinedJSON is the wire form: payload as text where it is UTF-8.
type quarantinedJSON struct {
	ID       string `json:"id"`
	Device   string `json:"device_id"`
	Topic    string `json:"topic"`
	Received Time   `json:"received"`
	Reason   string `json:"reason"`
	Payload  string `json:"payload" doc:"as it came, or base64 when it is not UTF-8"`
	Encoding string `json:"payload_encoding,omitempty" enum:"base64" doc:"present when payload is base64"`
}

// MarshalJSON writes the payload as text, or as base64 when it is not UTF-8.
func (q Quarantined) MarshalJSON() ([]byte, error) {
	w := quarantinedJSON{ID: q.ID, Device: q.Device, Topic: q.Topic, Received: q.Received, Reason: q.Reason}
	if utf8.Valid(q.Payload) {
		w.Payload = string(q.Payload)
	} else {
		w.Payload, w.Encoding = base64.StdEncoding.EncodeToString(q.Payload), "base64"
	}
	return json.Marshal(&w)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (q *Quarantined) UnmarshalJSON(b []byte) error {
	var w quarantinedJSON
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	payload := []byte(w.Payload)
	if w.Encoding == "base64" {
		var err error
		if payload, err = base64.StdEncoding.DecodeString(w.Payload); err != nil {
			return err
		}
	}
	*q = Quarantined{ID: w.ID, Device: w.Device, Topic: w.Topic, Received: w.Received, Reason: w.Reason, Payload: payload}
	return nil
}

// Schema describes the wire form in the OpenAPI document.
func (Quarantined) Schema(r huma.Registry) *huma.Schema {
	return huma.SchemaFromType(r, reflect.TypeFor[quarantinedJSON]())
}

// Counts answers POST /api/v1/telemetry, in messages. Refused and Unknown are
// absent when 0; Unknown comes only inside a 503.
type Counts struct {
	Received      int         `json:"received"`
	Applied       int         `json:"applied"`
	Duplicate     int         `json:"duplicate"`
	Quarantined   int         `json:"quarantined"`
	Refused       int         `json:"refused,omitempty"`
	Unknown       int         `json:"unknown,omitempty" doc:"not known to be durable: send them again"`
	Errors        []LineError `json:"errors" nullable:"false"`
	ErrorsOmitted int         `json:"errors_omitted,omitempty" doc:"further errors that are not listed"`
	Token         string      `json:"token,omitempty" doc:"names what is durable: a query with after_write=token holds it, whichever node answers"`

	refusals [telemetry.RefusalTooLarge + 1]int // Refused by kind, for the status
}

// LineError says why a line (counted from 1; in an array the element) has not
// been applied.
type LineError struct {
	Line   int    `json:"line"`
	Reason string `json:"reason"`
}

// ReadingList answers GET /api/v1/devices/{id}/readings.
type ReadingList struct {
	Readings []Reading `json:"readings" nullable:"false"`
	Next     string    `json:"next,omitempty" doc:"cursor of the next page, absent on the last"`
}

// DeviceList answers GET /api/v1/devices.
type DeviceList struct {
	Devices []Device `json:"devices" nullable:"false"`
	Next    string   `json:"next,omitempty" doc:"cursor of the next page, absent on the last"`
}

// AnomalyList answers GET /api/v1/anomalies, newest first.
type AnomalyList struct {
	Anomalies []Anomaly `json:"anomalies" nullable:"false"`
	Next      string    `json:"next,omitempty" doc:"cursor of the next page, absent on the last"`
}

// QuarantineList answers GET /api/v1/quarantine, newest first.
type QuarantineList struct {
	Quarantine []Quarantined `json:"quarantine" nullable:"false"`
	Next       string        `json:"next,omitempty" doc:"cursor of the next page, absent on the last"`
}
