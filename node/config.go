package node

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/v2"

	"github.com/sluice-iot/sluice/broker"
	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/internal/obs"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/wal"
)

// Config is a node's configuration file. Values come from the file, then from
// SLUICE_* in the environment (SLUICE_MQTT_LISTEN is mqtt.listen), then from
// flags. An unknown key is an error.
type Config struct {
	Node    NodeConfig    `yaml:"node"`
	Cluster ClusterConfig `yaml:"cluster"`
	MQTT    MQTTConfig    `yaml:"mqtt"`
	HTTP    HTTPConfig    `yaml:"http"`
	Store   StoreConfig   `yaml:"store"`
	Archive ArchiveConfig `yaml:"archive"`
	Flush   FlushConfig   `yaml:"flush"`
	WAL     WALConfig     `yaml:"wal"`
	Alerts  AlertsConfig  `yaml:"alerts"`
	Log     LogConfig     `yaml:"log"`
	Debug   DebugConfig   `yaml:"debug"`
}

// NodeConfig is who the node is.
type NodeConfig struct {
	ID   telemetry.NodeID `yaml:"id"`   // unique in the cluster; stays with the data directory
	Zone telemetry.Zone   `yaml:"zone"` // failure domain: replicas of a shard live in different zones
	Data string           `yaml:"data"` // directory for log, snapshots and segments; created when absent
}

// ClusterConfig is how nodes find and trust each other.
type ClusterConfig struct {
	Listen string   `yaml:"listen"` // host:port for traffic between nodes (TCP)
	Gossip string   `yaml:"gossip"` // host:port for membership (TCP and UDP)
	Seeds  []string `yaml:"seeds"`  // gossip addresses of some nodes; this node's own is ignored
	Secret string   `yaml:"secret"` // shared by all nodes, 16 bytes or more; authenticates them to each other

	// SnapshotMiB limits the snapshots that this node sends to others, all shards
	// together, so that a replica that is built anew does not take the network
	// from publishes. 0: as fast as may be.
	SnapshotMiB int `yaml:"snapshot_mib_per_second"`
}

// HTTPConfig is the API's listener.
type HTTPConfig struct {
	Listen    string `yaml:"listen"`
	Advertise string `yaml:"advertise"`
}

// StoreConfig says where rows go.
type StoreConfig struct {
	Database  string        `yaml:"database"`  // postgres:// URL; empty: embedded Parquet segments
	Retention time.Duration `yaml:"retention"` // readings older than this are dropped, a window or chunk at a time; 0: never. By their time with a database, by receipt in segments

	// What follows needs a database.
	Connections        int           `yaml:"connections"`         // of this node: all but one for flushes, up to half of them for queries
	ManualMigrations   bool          `yaml:"manual_migrations"`   // the node's role owns nothing: see sluice database migrate
	Chunk              time.Duration `yaml:"chunk"`               // time that a chunk or partition covers
	CompressAfter      time.Duration `yaml:"compress_after"`      // TimescaleDB: age at which a chunk goes to the columnstore; 0: never
	AggregateRetention time.Duration `yaml:"aggregate_retention"` // TimescaleDB: the same as retention for minutes and hours; 0: never

	// What follows is for the embedded store.
	CompactMiBPerSecond int `yaml:"compact_mib_per_second"` // merging of files in the background; 0: 32
	ScrubMiBPerSecond   int `yaml:"scrub_mib_per_second"`   // search for damage in cold files; 0: 1

	ScrubEvery time.Duration `yaml:"scrub_every"` // how long a file that was found whole is left alone; 0: 720h
}

// ArchiveConfig names an S3-compatible bucket for copies of the embedded store's
// files. Without an endpoint there is none.
type ArchiveConfig struct {
	Endpoint  string `yaml:"endpoint"` // https://HOST[:PORT]
	Bucket    string `yaml:"bucket"`   // must exist
	Region    string `yaml:"region"`   // empty: the store is asked
	Prefix    string `yaml:"prefix"`   // of all keys; the cluster's id follows
	AccessKey string `yaml:"access_key"`
	SecretKey string `yaml:"secret_key"`

	// How long rows stay beyond store.retention for an archive that lacks them; 0: not at all.
	HoldMax    time.Duration `yaml:"hold_max"`
	HoldMaxMiB int           `yaml:"hold_max_mib"` // of files on a node that do; 0: while a tenth of the disk is free
}

// FlushConfig says when rows go there.
type FlushConfig struct {
	Interval time.Duration `yaml:"interval"` // 0: 1m embedded (one file per shard and interval, merged later), 1s with a database
	RowsMax  int           `yaml:"rows_max"` // rows per batch; reaching it flushes at once
	// What stays in the log after a database has it, to refill one that loses its tail.
	Retain    time.Duration `yaml:"retain"`     // of flushing
	RetainMiB int           `yaml:"retain_mib"` // of log per shard, at most
}

// WALConfig is the log of the node.
type WALConfig struct {
	SegmentMiB int `yaml:"segment_mib"` // size of a preallocated segment file
	MaxMiB     int `yaml:"max_mib"`     // disk that the log may take; 0: what the file system has
	// SnapshotKiB is how much log of a shard makes a snapshot worth taking, at
	// least: a restart replays about so much of every shard.
	SnapshotKiB int `yaml:"snapshot_kib"`
	// TrailingEntries is how many entries of a shard stay behind a snapshot, for
	// replicas that are a little behind: without them they get the snapshot.
	TrailingEntries uint64 `yaml:"trailing_entries"`
	// Log and snapshots are read back in search of damage, everything once in
	// ScrubEvery at most (0: 10m) and no faster than so much a second (0: 4), each.
	ScrubMiBPerSecond int              `yaml:"scrub_mib_per_second"`
	ScrubEvery        time.Duration    `yaml:"scrub_every"`
	Encryption        EncryptionConfig `yaml:"encryption"`
}

// spareShare is the part of the log's budget that empty segment files may take
// beside those that are prepared.
const spareShare = 32

// spares is how many empty segments are kept; 0 is the log's default.
func (c *WALConfig) spares() int {
	if c.MaxMiB == 0 {
		return 0
	}
	return min(wal.DefaultSpareSegments, max(1, c.MaxMiB/c.SegmentMiB/spareShare))
}

// LogConfig is what the node says on stderr.
type LogConfig struct {
	Level string `yaml:"level"` // debug, info, warn or error
}

// DebugConfig is for whoever looks into a running node.
type DebugConfig struct {
	Listen string `yaml:"listen"` // host:port of net/http/pprof, loopback only; empty: off
}

func defaultConfig() Config {
	return Config{
		Cluster: ClusterConfig{Listen: "127.0.0.1:7400", Gossip: "127.0.0.1:7401", SnapshotMiB: 64},
		MQTT: MQTTConfig{Listen: "127.0.0.1:1883", WebSocket: WebSocketConfig{Path: "/mqtt"}, Limits: LimitsConfig{Connects: 5000},
			TLS: MQTTTLSConfig{ClientAuth: broker.ClientAuthNone, Identity: broker.NameCommon}},
		HTTP:    HTTPConfig{Listen: "127.0.0.1:8080"},
		Store:   StoreConfig{Connections: 4, Chunk: 7 * 24 * time.Hour, CompressAfter: 7 * 24 * time.Hour},
		Archive: ArchiveConfig{HoldMax: 720 * time.Hour},
		Flush:   FlushConfig{RowsMax: 100_000, Retain: 15 * time.Minute, RetainMiB: 1024},
		WAL:     WALConfig{SegmentMiB: 64, SnapshotKiB: 64 << 10, TrailingEntries: 8192},
		Log:     LogConfig{Level: "info"},
	}
}

// Defaults is what a node uses where nothing is said.
func Defaults() Config {
	cfg := defaultConfig()
	cfg.defaults()
	return cfg
}

// LoadConfig reads a file, then the environment, then key=value settings of the
// command line, and validates the result.
func LoadConfig(path string, environ, set []string) (Config, error) {
	cfg := defaultConfig()
	b, err := os.ReadFile(path)
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if err := decodeFile(&cfg, b); err != nil {
		return cfg, fmt.Errorf("read configuration %s: %w", path, err)
	}
	if err := overlayEnv(&cfg, environ); err != nil {
		return cfg, err
	}
	if err := overlaySet(&cfg, set); err != nil {
		return cfg, err
	}
	cfg.defaults()
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

// envPrefix begins every variable that overrides a key of the file.
const envPrefix = "SLUICE_"

// overlayEnv applies SLUICE_* variables. The names are derived from the keys of
// the file; one that matches no key is an error, so that a typo is not silent.
func overlayEnv(cfg *Config, environ []string) error {
	types := keysOf(reflect.TypeFor[Config](), "")
	names := map[string]string{}
	for key := range types {
		names[envPrefix+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))] = key
	}
	var unknown []string
	k := koanf.New(".")
	provider := env.Provider(".", env.Opt{Prefix: envPrefix, EnvironFunc: func() []string { return environ }, TransformFunc: func(name, value string) (string, any) {
		if slices.Contains(notConfig, name) {
			return "", nil
		}
		key, ok := names[name]
		if !ok {
			unknown = append(unknown, name)
			return "", nil
		}
		return key, valueOf(types[key], value)
	}})
	if err := k.Load(provider, nil); err != nil {
		return fmt.Errorf("read environment: %w", err)
	}
	if len(unknown) > 0 {
		return fmt.Errorf("environment variable %s matches no configuration key: see sluice config print", strings.Join(unknown, ", "))
	}
	if err := k.UnmarshalWithConf("", cfg, koanf.UnmarshalConf{Tag: "yaml"}); err != nil {
		return fmt.Errorf("read environment: %s", obs.OneLine(err.Error()))
	}
	return nil
}

// overlaySet applies key=value settings of the command line.
func overlaySet(cfg *Config, set []string) error {
	types := keysOf(reflect.TypeFor[Config](), "")
	k := koanf.New(".")
	for _, s := range set {
		key, value, ok := strings.Cut(s, "=")
		typ, known := types[key]
		if !ok || !known {
			return fmt.Errorf("--set %q is not KEY=VALUE with a configuration key such as mqtt.listen: see sluice config print", s)
		}
		if err := k.Set(key, valueOf(typ, value)); err != nil {
			return fmt.Errorf("--set %s: %w", key, err)
		}
	}
	if err := k.UnmarshalWithConf("", cfg, koanf.UnmarshalConf{Tag: "yaml"}); err != nil {
		return fmt.Errorf("read --set: %s", obs.OneLine(err.Error()))
	}
	return nil
}

// valueOf splits the values of lists.
func valueOf(t reflect.Type, value string) any {
	if t.Kind() == reflect.Slice {
		return strings.Split(value, ",")
	}
	return value
}

// notConfig lists variables with our prefix that are not keys of the file.
var notConfig = []string{"SLUICE_DATA", "SLUICE_API"}

// keysOf lists the dotted keys of a configuration struct with the types of their values.
func keysOf(t reflect.Type, prefix string) map[string]reflect.Type {
	keys := map[string]reflect.Type{}
	for f := range t.Fields() {
		key := prefix + f.Tag.Get("yaml")
		if f.Type.Kind() == reflect.Struct {
			maps.Copy(keys, keysOf(f.Type, key+"."))
		} else {
			keys[key] = f.Type
		}
	}
	return keys
}

// defaults fills in what follows from other values.
func (c *Config) defaults() {
	if c.MQTT.Advertise == "" {
		c.MQTT.Advertise = cmp.Or(c.MQTT.Listen, c.MQTT.TLS.Listen, c.MQTT.WebSocket.Listen, c.MQTT.WebSocket.TLSListen)
	}
	if c.HTTP.Advertise == "" {
		c.HTTP.Advertise = c.HTTP.Listen
	}
	if c.Flush.Interval == 0 {
		c.Flush.Interval = time.Minute
		if c.Store.Database != "" {
			c.Flush.Interval = time.Second
		}
	}
}

// retentionMax keeps a typing error from overflowing a time.
const retentionMax = 100 * 365 * 24 * time.Hour

// scrubEveryMax is a search for damage that peers can still repair.
const scrubEveryMax = 365 * 24 * time.Hour

// secretBytesMin keeps guessing out of reach.
const secretBytesMin = 16

// Validate returns every problem at once.
func (c *Config) Validate() error {
	var errs []error
	problem := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if err := cluster.ValidateNodeID(c.Node.ID); err != nil {
		problem("node.id", "%v", err)
	}
	if err := cluster.ValidateZone(c.Node.Zone); err != nil {
		problem("node.zone", "%v", err)
	}
	if c.Node.Data == "" {
		problem("node.data", "is empty: name a directory on a local disk")
	}
	if len(c.Cluster.Secret) < secretBytesMin {
		problem("cluster.secret", "has %d bytes, want at least %d: use the same random text on every node", len(c.Cluster.Secret), secretBytesMin)
	}
	if n := c.Cluster.SnapshotMiB; n < 0 || n > 100_000 {
		problem("cluster.snapshot_mib_per_second", "is %d: use 0 for no limit, or 1 to 100000", n)
	}
	if strings.HasPrefix(c.Cluster.Secret, "change-me") {
		problem("cluster.secret", "is the example's: make one with head -c 24 /dev/urandom | base64")
	}
	for _, a := range []struct{ key, addr string }{
		{"cluster.listen", c.Cluster.Listen}, {"cluster.gossip", c.Cluster.Gossip},
		{"http.listen", c.HTTP.Listen}, {"mqtt.advertise", c.MQTT.Advertise}, {"http.advertise", c.HTTP.Advertise},
	} {
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			problem(a.key, "%q is not host:port", a.addr)
		}
	}
	for _, a := range []struct{ key, addr, who string }{
		{"cluster.listen", c.Cluster.Listen, "the other nodes reach"}, {"cluster.gossip", c.Cluster.Gossip, "the other nodes reach"},
		{"mqtt.advertise", c.MQTT.Advertise, "clients reach"}, {"http.advertise", c.HTTP.Advertise, "clients reach"},
	} {
		if host, _, err := net.SplitHostPort(a.addr); err == nil && (host == "" || net.ParseIP(host).IsUnspecified()) {
			problem(a.key, "%q is every address: name the one that %s", a.addr, a.who)
		}
	}
	c.MQTT.validate(problem)
	if d := c.Store.Database; d != "" && !strings.HasPrefix(d, "postgres://") && !strings.HasPrefix(d, "postgresql://") {
		problem("store.database", "is not a postgres:// URL; leave it out for the embedded store")
	} else if d != "" {
		if err := databaseConfig(c).Validate(); err != nil {
			problem("store", "%v", err)
		}
	}
	if c.Store.Connections < 2 {
		problem("store.connections", "is %d: use 2 to 64", c.Store.Connections)
	}
	if c.Archive.Endpoint != "" {
		if c.Store.Database != "" {
			problem("archive.endpoint", "is for the embedded store: leave it out with a database")
		}
		if err := c.Archive.S3().Validate(); err != nil {
			problem("archive", "%s", obs.OneLine(err.Error()))
		}
	}
	if h := c.Archive.HoldMax; h < 0 || h > retentionMax {
		problem("archive.hold_max", "is %v: use 0s to %v", h, retentionMax)
	}
	if h := c.Archive.HoldMaxMiB; h < 0 || h > 1<<30 {
		problem("archive.hold_max_mib", "is %d: use 0 to 1073741824", h)
	}
	if r := c.Store.Retention; r != 0 && (r < time.Hour || r > retentionMax) {
		problem("store.retention", "is %v: use 1h to %v, or 0s to keep everything", r, retentionMax)
	}
	for _, r := range []struct {
		key  string
		rate int
	}{{"store.compact_mib_per_second", c.Store.CompactMiBPerSecond}, {"store.scrub_mib_per_second", c.Store.ScrubMiBPerSecond}, {"wal.scrub_mib_per_second", c.WAL.ScrubMiBPerSecond}} {
		if r.rate < 0 || r.rate > 10_000 {
			problem(r.key, "is %d: use 1 to 10000, or 0 for the default", r.rate)
		}
	}
	for _, e := range []struct {
		key   string
		every time.Duration
	}{{"store.scrub_every", c.Store.ScrubEvery}, {"wal.scrub_every", c.WAL.ScrubEvery}} {
		if e.every != 0 && (e.every < time.Second || e.every > scrubEveryMax) {
			problem(e.key, "is %v: use 1s to %v, or 0s for the default", e.every, scrubEveryMax)
		}
	}
	if c.Flush.Interval < 100*time.Millisecond || c.Flush.Interval > time.Hour {
		problem("flush.interval", "is %v: use 100ms to 1h", c.Flush.Interval)
	}
	if c.Flush.RowsMax < 1000 || c.Flush.RowsMax > 10_000_000 {
		problem("flush.rows_max", "is %d: use 1000 to 10000000", c.Flush.RowsMax)
	}
	if c.Flush.Retain < time.Second || c.Flush.Retain > 24*time.Hour {
		problem("flush.retain", "is %v: use 1s to 24h", c.Flush.Retain)
	}
	if c.Flush.RetainMiB < 1 || c.Flush.RetainMiB > 1<<20 {
		problem("flush.retain_mib", "is %d: use 1 to 1048576", c.Flush.RetainMiB)
	}
	if c.WAL.MaxMiB != 0 && (c.WAL.MaxMiB < 8*c.WAL.SegmentMiB || c.WAL.MaxMiB > 1<<30) {
		problem("wal.max_mib", "is %d: use at least eight segments (%d) and at most 1073741824, or 0 for what the file system has", c.WAL.MaxMiB, 8*c.WAL.SegmentMiB)
	}
	if c.WAL.SegmentMiB < 1 || c.WAL.SegmentMiB > 1024 {
		problem("wal.segment_mib", "is %d: use 1 to 1024", c.WAL.SegmentMiB)
	}
	if c.WAL.SnapshotKiB < 16 || c.WAL.SnapshotKiB > 16<<20 {
		problem("wal.snapshot_kib", "is %d: use 16 to 16777216; less log means more snapshots, more log a longer restart", c.WAL.SnapshotKiB)
	}
	if n := c.WAL.TrailingEntries; n < 1 || n > 1<<20 {
		problem("wal.trailing_entries", "is %d: use 1 to 1048576", n)
	}
	if err := c.WAL.Encryption.validate(); err != nil {
		problem("wal.encryption", "%v", err)
	}
	if err := c.Alerts.Webhook.validate(); err != nil {
		problem("alerts.webhook", "%v", err)
	}
	if host, _, err := net.SplitHostPort(c.Debug.Listen); c.Debug.Listen != "" && (err != nil || !net.ParseIP(host).IsLoopback()) {
		problem("debug.listen", "%q is not host:port on loopback (profiles show what is in memory): use 127.0.0.1:6060", c.Debug.Listen)
	}
	if _, err := c.Log.SlogLevel(); err != nil {
		problem("log.level", "%v", err)
	}
	return errors.Join(errs...)
}

// SlogLevel is the level of the logger.
func (c *LogConfig) SlogLevel() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.Level)); err != nil {
		return 0, fmt.Errorf("%q is not a level: use debug, info, warn or error", c.Level)
	}
	return l, nil
}
