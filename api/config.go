package api

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// Config holds the identity and the limits of a Server. A limit of 0 is its
// default.
type Config struct {
	Node    telemetry.NodeID // names this node in problems and in the OpenAPI document
	Version string           // of the binary, for the OpenAPI document

	// Middleware wraps every route; nil is none. It is the seam for
	// authentication: what it answers itself never reaches a handler.
	Middleware func(http.Handler) http.Handler

	// BodyBytesMax bounds a telemetry body after decompression (default 64 MiB);
	// more is 413, and what came before stays applied.
	BodyBytesMax int64
	// MessageBytesMax bounds one message of a body (default 256 KiB); a longer
	// one is refused and the others go on.
	MessageBytesMax int
	// InflightBytesMax bounds the messages of all requests that wait for their
	// commit (default 64 MiB); beyond it bodies are read no further.
	InflightBytesMax int64

	// CommitTimeout is how long a request waits for outcomes without hearing of
	// one (default 15 s, more than the ingest path's own 10 s); then they count
	// as unknown and the answer is 503.
	CommitTimeout time.Duration
	// ProgressTimeout cuts a connection that neither takes a byte of the answer
	// nor sends a byte of its body for so long (default 30 s).
	ProgressTimeout time.Duration
	// Heartbeat is the pause between comments on an idle stream (default 15 s);
	// proxies and clients close what is silent for longer than about a minute.
	Heartbeat time.Duration
	// ShutdownTimeout is how long Serve lets requests finish (default 10 s).
	ShutdownTimeout time.Duration

	ConnectionsMax int // open connections, more wait to be accepted (default 4096)
	StreamsMax     int // event streams, more are 503 (default 256)
	ReadsMax       int // queries at a time, each holds a page of up to ~8 MB; more wait for 5 s, then 503 (default 16)
}

// Defaults of Config.
const (
	bodyBytesMaxDefault     = 64 << 20
	messageBytesMaxDefault  = 256 << 10
	inflightBytesMaxDefault = 64 << 20
	commitTimeoutDefault    = 15 * time.Second
	progressTimeoutDefault  = 30 * time.Second
	heartbeatDefault        = 15 * time.Second
	shutdownTimeoutDefault  = 10 * time.Second
	connectionsMaxDefault   = 4096
	streamsMaxDefault       = 256
	readsMaxDefault         = 16
)

// Validate returns every problem of the configuration.
func (c *Config) Validate() error {
	var problems []error
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"BodyBytesMax", c.BodyBytesMax}, {"MessageBytesMax", int64(c.MessageBytesMax)}, {"InflightBytesMax", c.InflightBytesMax},
		{"CommitTimeout", int64(c.CommitTimeout)}, {"ProgressTimeout", int64(c.ProgressTimeout)}, {"Heartbeat", int64(c.Heartbeat)},
		{"ShutdownTimeout", int64(c.ShutdownTimeout)}, {"ConnectionsMax", int64(c.ConnectionsMax)},
		{"StreamsMax", int64(c.StreamsMax)}, {"ReadsMax", int64(c.ReadsMax)},
	} {
		if n.value < 0 {
			problems = append(problems, fmt.Errorf("%s is %d: use 0 for the default or a positive limit", n.name, n.value))
		}
	}
	d := c.withDefaults()
	if int64(d.MessageBytesMax) > d.BodyBytesMax {
		problems = append(problems, fmt.Errorf("MessageBytesMax %d is more than BodyBytesMax %d: lower the first or raise the second", d.MessageBytesMax, d.BodyBytesMax))
	}
	if int64(d.MessageBytesMax) > d.InflightBytesMax {
		problems = append(problems, fmt.Errorf("MessageBytesMax %d is more than InflightBytesMax %d: lower the first or raise the second", d.MessageBytesMax, d.InflightBytesMax))
	}
	return errors.Join(problems...)
}

func (c *Config) withDefaults() Config {
	d := *c
	d.BodyBytesMax = orDefault(d.BodyBytesMax, bodyBytesMaxDefault)
	d.MessageBytesMax = orDefault(d.MessageBytesMax, messageBytesMaxDefault)
	d.InflightBytesMax = orDefault(d.InflightBytesMax, inflightBytesMaxDefault)
	d.CommitTimeout = orDefault(d.CommitTimeout, commitTimeoutDefault)
	d.ProgressTimeout = orDefault(d.ProgressTimeout, progressTimeoutDefault)
	d.Heartbeat = orDefault(d.Heartbeat, heartbeatDefault)
	d.ShutdownTimeout = orDefault(d.ShutdownTimeout, shutdownTimeoutDefault)
	d.ConnectionsMax = orDefault(d.ConnectionsMax, connectionsMaxDefault)
	d.StreamsMax = orDefault(d.StreamsMax, streamsMaxDefault)
	d.ReadsMax = orDefault(d.ReadsMax, readsMaxDefault)
	return d
}

func orDefault[T int | int64 | time.Duration](v, d T) T {
	if v == 0 {
		return d
	}
	return v
}

// Validate names every part that is missing.
func (b *Backend) Validate() error {
	var problems []error
	for _, part := range []struct {
		name    string
		missing bool
	}{
		{"Ingest", b.Ingest == nil}, {"Cluster", b.Cluster == nil}, {"Reader", b.Reader == nil}, {"Attributes", b.Attributes == nil},
		{"Quarantine", b.Quarantine == nil}, {"Events", b.Events == nil}, {"Watch", b.Watch == nil},
	} {
		if part.missing {
			problems = append(problems, fmt.Errorf("missing Backend.%s", part.name))
		}
	}
	return errors.Join(problems...)
}
