package cluster

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/sluice-iot/sluice/telemetry"
)

const (
	identityFile    = "node.json"
	identityVersion = 1
)

// The ways in which a data directory is not the caller's. Every error that
// wraps one of them says what to do about it.
var (
	ErrLocked       = errors.New("data directory is in use")
	ErrOtherNode    = errors.New("data directory belongs to another node")
	ErrOtherZone    = errors.New("data directory belongs to another zone")
	ErrOtherCluster = errors.New("data directory belongs to another cluster")
	ErrUnwritable   = errors.New("data directory is not writable")
	ErrBadIdentity  = errors.New("identity file is damaged")
)

// Identity is an open, locked data directory.
type Identity struct {
	dir  string
	lock *os.File

	mu   sync.Mutex
	file identity
}

// identity is the content of node.json, see FORMAT.md.
type identity struct {
	Version     int              `json:"version"`
	ClusterID   string           `json:"cluster_id"`
	Node        telemetry.NodeID `json:"node"`
	Incarnation string           `json:"incarnation"`
	Zone        telemetry.Zone   `json:"zone"`
	Fresh       bool             `json:"fresh,omitempty"` // renewed, and not part of the cluster again yet
}

// LoadOrCreateIdentity locks dir and reads its identity, creating directory and
// identity when there is none. A directory that has other files but no identity
// is refused: creating one would make a new peer out of the remains of an old
// one. The lock is held until Close or the end of the process.
func LoadOrCreateIdentity(dir string, node telemetry.NodeID, zone telemetry.Zone) (*Identity, error) {
	if err := errors.Join(ValidateNodeID(node), ValidateZone(zone)); err != nil {
		return nil, err
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir, lockWait)
	if err != nil {
		return nil, err
	}
	id := &Identity{dir: dir, lock: lock}
	if err := id.load(node, zone); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return id, nil
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("%w: %w: give the user that runs sluice write access to %s, or choose another directory", ErrUnwritable, err, dir)
	}
	return nil
}

func (id *Identity) load(node telemetry.NodeID, zone telemetry.Zone) error {
	path := filepath.Join(id.dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return id.create(node, zone)
	}
	if err != nil {
		return fmt.Errorf("read identity: %w", err)
	}
	f, err := decodeIdentity(b)
	if err != nil {
		return fmt.Errorf("read %s: %w: restore the file from a backup; leave the node off until then, the other replicas carry on", path, err)
	}
	if f.Node != node {
		return fmt.Errorf("%w: %s is of node %q and this one is configured as %q: correct the data directory or the node id", ErrOtherNode, id.dir, f.Node, node)
	}
	if f.Zone != zone {
		return fmt.Errorf("%w: %s was made in zone %q and this node is configured in %q: correct the zone, or evict the node and start it with an empty directory", ErrOtherZone, id.dir, f.Zone, zone)
	}
	id.file = f
	return nil
}

func decodeIdentity(b []byte) (identity, error) {
	var f identity
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&f); err != nil {
		return f, fmt.Errorf("%w: %w", ErrBadIdentity, err)
	}
	if f.Version != identityVersion {
		return f, fmt.Errorf("%w: format version %d, this program reads version %d", ErrBadIdentity, f.Version, identityVersion)
	}
	if err := errors.Join(ValidateNodeID(f.Node), ValidateZone(f.Zone)); err != nil {
		return f, fmt.Errorf("%w: %w", ErrBadIdentity, err)
	}
	if !validIncarnation(f.Incarnation) {
		return f, fmt.Errorf("%w: incarnation %q", ErrBadIdentity, f.Incarnation)
	}
	return f, nil
}

// directoriesOfALife are what belongs to one incarnation: the log first, because
// without it nothing else is started from. The store holds what the cluster has
// committed, whoever wrote it down, and is verified segment by segment.
var directoriesOfALife = []string{"wal", "meta", "shards"}

// Renew gives the directory a new incarnation after the old one has lost or
// damaged something that it must not vote without. The log, the snapshots and a
// copy of node.json are moved into a directory of the old incarnation's name,
// which is returned; nothing is deleted. Nobody may have them open. A crash
// inside leaves a directory without a log, for which Renew is called again.
func (id *Identity) Renew() (aside string, err error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	aside, err = id.asideDir()
	if err != nil {
		return "", err
	}
	f := id.file
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode identity: %w", err)
	}
	if err := writeSynced(filepath.Join(aside, identityFile), append(b, '\n')); err != nil {
		return "", fmt.Errorf("keep identity of the old incarnation: %w", err)
	}
	for _, name := range directoriesOfALife {
		err := os.Rename(filepath.Join(id.dir, name), filepath.Join(aside, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("set aside %s: %w: the directory must be on one file system, and writable", name, err)
		}
	}
	if err := errors.Join(syncDir(aside), syncDir(id.dir)); err != nil {
		return "", fmt.Errorf("sync data directory: %w", err)
	}
	f.Fresh = true
	if f.Incarnation, err = newIncarnation(); err != nil {
		return "", err
	}
	if err := id.write(f); err != nil {
		return "", err
	}
	id.file = f
	return aside, nil
}

// asideMax bounds the attempts at a name: a life is renewed once.
const asideMax = 100

// asideDir makes the directory for what the present incarnation leaves.
func (id *Identity) asideDir() (string, error) {
	for i := range asideMax {
		name := "damaged-" + id.file.Incarnation
		if i > 0 {
			name += fmt.Sprintf("-%d", i)
		}
		path := filepath.Join(id.dir, name)
		err := os.Mkdir(path, 0o750)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("%w: %w: give the user that runs sluice write access to %s", ErrUnwritable, err, id.dir)
		}
	}
	return "", fmt.Errorf("%d directories of incarnation %s are set aside in %s: look at them and move them away", asideMax, id.file.Incarnation, id.dir)
}

func newIncarnation() (string, error) {
	var inc [incarnationDigits / 2]byte
	if _, err := rand.Read(inc[:]); err != nil {
		return "", fmt.Errorf("draw incarnation: %w", err)
	}
	return hex.EncodeToString(inc[:]), nil
}

func (id *Identity) create(node telemetry.NodeID, zone telemetry.Zone) error {
	names, err := os.ReadDir(id.dir)
	if err != nil {
		return fmt.Errorf("list data directory: %w", err)
	}
	for _, n := range names {
		if n.Name() != lockFile && n.Name() != identityFile+".tmp" {
			return fmt.Errorf("%w: %s holds %q but no %s: name an empty directory, or restore the file", ErrBadIdentity, id.dir, n.Name(), identityFile)
		}
	}
	inc, err := newIncarnation()
	if err != nil {
		return err
	}
	id.file = identity{Version: identityVersion, Node: node, Incarnation: inc, Zone: zone}
	return id.write(id.file)
}

// write replaces node.json so that a crash leaves the old or the new content.
func (id *Identity) write(f identity) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	path := filepath.Join(id.dir, identityFile)
	if err := writeSynced(path+".tmp", append(b, '\n')); err != nil {
		return fmt.Errorf("%w: %w: give the user that runs sluice write access to %s", ErrUnwritable, err, id.dir)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("replace identity: %w", err)
	}
	if err := syncDir(id.dir); err != nil {
		return fmt.Errorf("sync data directory: %w", err)
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// AdoptCluster makes the directory part of a cluster, durably. It succeeds again
// for the same cluster and refuses any other.
func (id *Identity) AdoptCluster(cluster string) error {
	if cluster == "" {
		return errors.New("adopt cluster: cluster id is empty")
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.file.ClusterID == cluster && !id.file.Fresh {
		return nil
	}
	if id.file.ClusterID != "" && id.file.ClusterID != cluster {
		return fmt.Errorf("%w: %s is of cluster %s, the seeds are of cluster %s: correct the seeds or the data directory", ErrOtherCluster, id.dir, id.file.ClusterID, cluster)
	}
	f := id.file
	f.ClusterID, f.Fresh = cluster, false
	if err := id.write(f); err != nil {
		return err
	}
	id.file = f
	return nil
}

// ClusterID is the cluster this directory belongs to, "" until it has joined one.
func (id *Identity) ClusterID() string {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.file.ClusterID
}

// Joined reports whether this incarnation has been part of a cluster, so that it
// may have voted there.
func (id *Identity) Joined() bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.file.ClusterID != "" && !id.file.Fresh
}

// Node is the node id the directory was made for.
func (id *Identity) Node() telemetry.NodeID { return id.file.Node }

// Zone is the zone the directory was made in.
func (id *Identity) Zone() telemetry.Zone { return id.file.Zone }

// Incarnation is drawn when the directory is made, and again by Renew.
func (id *Identity) Incarnation() string {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.file.Incarnation
}

// Peer is the name of this node in frames and raft configurations.
func (id *Identity) Peer() string { return PeerID(id.Node(), id.Incarnation()) }

// Dir is the data directory.
func (id *Identity) Dir() string { return id.dir }

// Close releases the directory to other processes.
func (id *Identity) Close() error {
	if err := id.lock.Close(); err != nil {
		return fmt.Errorf("release data directory: %w", err)
	}
	return nil
}
