package devcluster

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/goccy/go-yaml"
)

// Options of a cluster.
type Options struct {
	Binary   string   // the sluice executable
	Dir      string   // everything is below it; created when absent
	Nodes    int      // 1 to nodesMax
	Zones    []string // node i is in zone i modulo their number
	MQTTPort int      // of node 0; node i has MQTTPort+i
	HTTPPort int      // of node 0
	Shards   uint32   // used when the cluster is created
	Replicas int      // of each shard, likewise; 0 is 3, or as many as there are nodes
	Database string   // postgres:// URL; "" is the embedded store
	// LogMaxMiB is how much disk the log of a node may take; 0 is what there is.
	LogMaxMiB int
	// Flush and LogLevel go into the nodes' configuration; zero values leave
	// the defaults.
	FlushInterval time.Duration
	LogLevel      string
	Environ       []string // added to the nodes' environment
	// Hosts are the addresses of the nodes, Prefix comes before the command of
	// node i: together they put nodes into network namespaces. Empty is loopback.
	Hosts  []string
	Prefix func(i int) []string
	Debug  bool // every node serves profiles on a free port, see NodeInfo
}

const (
	nodesMax   = 9  // keeps a laptop usable
	segmentMiB = 16 // a new log prepares four segments; smaller ones make the first start quicker
)

// Validate returns every problem at once.
func (o *Options) Validate() error {
	var errs []error
	if o.Nodes < 1 || o.Nodes > nodesMax {
		errs = append(errs, fmt.Errorf("nodes is %d: use 1 to %d", o.Nodes, nodesMax))
	}
	if len(o.Hosts) > 0 && len(o.Hosts) != o.Nodes {
		errs = append(errs, fmt.Errorf("hosts has %d addresses for %d nodes: give one each, or none", len(o.Hosts), o.Nodes))
	}
	if len(o.Zones) == 0 {
		errs = append(errs, errors.New("zones is empty: name at least one, a,b,c for example"))
	}
	for _, p := range []struct {
		name string
		port int
	}{{"mqtt-port", o.MQTTPort}, {"http-port", o.HTTPPort}} {
		if p.port < 1 || p.port+o.Nodes > 65536 {
			errs = append(errs, fmt.Errorf("%s is %d: use 1 to %d", p.name, p.port, 65536-o.Nodes))
		}
	}
	return errors.Join(errs...)
}

// NodeInfo is a node in dev.json.
type NodeInfo struct {
	ID   string   `json:"id"`
	PID  int      `json:"pid"`
	Zone string   `json:"zone"`
	MQTT string   `json:"mqtt"` // host:port
	HTTP string   `json:"http"` // host:port
	Data string   `json:"data"` // its data directory
	Cmd  []string `json:"cmd"`  // starts it again
	// Debug is host:port of its profiles, if Options.Debug asked for them.
	Debug string `json:"debug,omitempty"`
}

type devFile struct {
	Nodes []NodeInfo `json:"nodes"`
}

// Cluster is a running local cluster.
type Cluster struct {
	logger *slog.Logger
	opt    Options
	seeds  []string // gossip addresses of the first nodes

	mu     sync.Mutex // over nodes' processes and dev.json
	nodes  []*Node
	exited chan *Node // every unexpected end of a process
}

// Start prepares the directory, starts the processes and initialises the
// cluster if it is new. It returns when all nodes answer; WaitReady waits for
// the leaders.
func Start(ctx context.Context, logger *slog.Logger, opt Options) (*Cluster, error) {
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		return nil, fmt.Errorf("find directory: %w", err)
	}
	opt.Dir = dir
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("create directory for the local cluster: %w: choose another with --data", err)
	}
	c := &Cluster{logger: logger, opt: opt, exited: make(chan *Node, nodesMax)}
	if err := c.checkPorts(); err != nil {
		return nil, err
	}
	if err := c.configure(); err != nil {
		return nil, err
	}
	for _, n := range c.nodes {
		if err := n.Start(); err != nil {
			return nil, errors.Join(err, c.Stop(ctx))
		}
	}
	if err := c.initialise(ctx); err != nil {
		return nil, errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// Nodes lists the nodes in the order of their ids.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Exited delivers nodes whose process ended without being told to.
func (c *Cluster) Exited() <-chan *Node { return c.exited }

// checkPorts finds out early, with a clear word, what a node would find late.
func (c *Cluster) checkPorts() error {
	if len(c.opt.Hosts) > 0 {
		return nil // their ports are not ours to try
	}
	for i := range c.opt.Nodes {
		for _, p := range []struct {
			flag string
			port int
		}{{"--mqtt-port", c.opt.MQTTPort + i}, {"--http-port", c.opt.HTTPPort + i}} {
			l, err := net.Listen("tcp", loopback(p.port))
			if err != nil {
				return fmt.Errorf("port %d is in use: stop what listens there, or choose others with %s: %w", p.port, p.flag, err)
			}
			if err := l.Close(); err != nil {
				return fmt.Errorf("probe port %d: %w", p.port, err)
			}
		}
	}
	return nil
}

// addr is an address of node i.
func (c *Cluster) addr(i, port int) string {
	if len(c.opt.Hosts) > 0 {
		return net.JoinHostPort(c.opt.Hosts[i], strconv.Itoa(port))
	}
	return loopback(port)
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// segmentMiB is smaller where the log must be small.
func (o *Options) segmentMiB() int {
	if o.LogMaxMiB > 0 {
		return max(1, min(segmentMiB, o.LogMaxMiB/8))
	}
	return segmentMiB
}

// configure writes one configuration file per node.
func (c *Cluster) configure() error {
	first, err := FreePorts(3 * c.opt.Nodes)
	if err != nil {
		return err
	}
	gossip, debug := first+c.opt.Nodes, first+2*c.opt.Nodes
	for i := range c.opt.Nodes {
		c.seeds = append(c.seeds, c.addr(i, gossip+i))
	}
	for i := range c.opt.Nodes {
		at := addresses{
			mqtt: c.addr(i, c.opt.MQTTPort+i), http: c.addr(i, c.opt.HTTPPort+i),
			mux: c.addr(i, first+i), gossip: c.addr(i, gossip+i), debug: loopback(debug + i),
		}
		if _, err := c.configureNode(c.opt.Zones[i%len(c.opt.Zones)], at); err != nil {
			return err
		}
	}
	return nil
}

// addresses of one node.
type addresses struct{ mqtt, http, mux, gossip, debug string }

// configureNode writes the configuration of the next node and adds it.
func (c *Cluster) configureNode(zone string, at addresses) (*Node, error) {
	secret, err := c.secret()
	if err != nil {
		return nil, err
	}
	i := len(c.nodes)
	id := "n" + strconv.Itoa(i)
	info := NodeInfo{ID: id, Zone: zone, MQTT: at.mqtt, HTTP: at.http, Data: filepath.Join(c.opt.Dir, id)}
	cfg := map[string]any{
		"node":    map[string]any{"id": id, "zone": info.Zone, "data": info.Data},
		"cluster": map[string]any{"listen": at.mux, "gossip": at.gossip, "seeds": c.seeds, "secret": secret},
		"mqtt":    map[string]any{"listen": info.MQTT},
		"http":    map[string]any{"listen": info.HTTP},
		"wal":     map[string]any{"segment_mib": c.opt.segmentMiB(), "max_mib": c.opt.LogMaxMiB},
	}
	if c.opt.Database != "" {
		cfg["store"] = map[string]any{"database": c.opt.Database}
	}
	if c.opt.FlushInterval > 0 {
		cfg["flush"] = map[string]any{"interval": c.opt.FlushInterval.String()}
	}
	if c.opt.LogLevel != "" {
		cfg["log"] = map[string]any{"level": c.opt.LogLevel}
	}
	if c.opt.Debug {
		info.Debug = at.debug
		cfg["debug"] = map[string]any{"listen": info.Debug}
	}
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("encode configuration of %s: %w", id, err)
	}
	path := filepath.Join(c.opt.Dir, id+".yaml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return nil, fmt.Errorf("write configuration of %s: %w", id, err)
	}
	if c.opt.Prefix != nil {
		info.Cmd = c.opt.Prefix(i)
	}
	info.Cmd = append(info.Cmd, c.opt.Binary, "node", "--config", path)
	n := &Node{NodeInfo: info, cluster: c}
	c.nodes = append(c.nodes, n)
	return n, nil
}

// Add starts one more node, on free ports. It is not for use beside other methods.
func (c *Cluster) Add(zone string) (*Node, error) {
	p, err := FreePorts(5)
	if err != nil {
		return nil, err
	}
	i := len(c.nodes)
	n, err := c.configureNode(zone, addresses{
		mqtt: c.addr(i, p), http: c.addr(i, p+1), mux: c.addr(i, p+2), gossip: c.addr(i, p+3), debug: loopback(p + 4),
	})
	if err != nil {
		return nil, err
	}
	return n, n.Start()
}

// secret is made once per directory.
func (c *Cluster) secret() (string, error) {
	path := filepath.Join(c.opt.Dir, "secret")
	b, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	s := rand.Text()
	if err := os.WriteFile(path, []byte(s+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write secret of the local cluster: %w", err)
	}
	return s, nil
}

// save writes dev.json; mu is held.
func (c *Cluster) save() error {
	var f devFile
	for _, n := range c.nodes {
		f.Nodes = append(f.Nodes, n.NodeInfo)
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encode dev.json: %w", err)
	}
	path := filepath.Join(c.opt.Dir, "dev.json")
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write dev.json: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write dev.json: %w", err)
	}
	return nil
}

// Load reads the dev.json below dir.
func Load(dir string) ([]NodeInfo, error) {
	b, err := os.ReadFile(filepath.Join(dir, "dev.json"))
	if err != nil {
		return nil, fmt.Errorf("read the local cluster's dev.json: %w: start one with sluice dev --data %s", err, dir)
	}
	var f devFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("read %s/dev.json: %w", dir, err)
	}
	return f.Nodes, nil
}
