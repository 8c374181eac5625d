package importer

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// state is the state file, see FORMAT.md.
type state struct {
	Version   int      `json:"version"`
	Input     string   `json:"input"`
	HeadBytes int      `json:"head_bytes"`
	HeadSum   string   `json:"head_sum"`
	Mapping   string   `json:"mapping"`
	Sensors   []string `json:"sensors,omitempty"`
	Cluster   string   `json:"cluster,omitempty"`
	Client    string   `json:"client"`
	PacketIDs []uint16 `json:"packet_ids"` // of each connection's next publish
	Line      int64    `json:"line"`
	Offset    int64    `json:"offset"`
	Counts    Counts   `json:"counts"`
	Complete  bool     `json:"complete"`
}

const stateVersion = 1

// stateFile replaces a state atomically and keeps other importers away.
type stateFile struct {
	path string
	lock *os.File
}

// openState locks the state file's name and reads what is there; nil when there
// is nothing yet.
func openState(path string, restart bool) (*stateFile, *state, error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("write state file: %w: put it elsewhere with --state, or go without with --state none", err)
	}
	f := &stateFile{path: path, lock: lock}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close() // nothing was written
		return nil, nil, fmt.Errorf("state file %s is in use: another import of this file is running", path)
	}
	if !f.owns() {
		_ = lock.Close() // nothing was written
		return nil, nil, fmt.Errorf("state file %s was in use until now: try again", path)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && restart {
		return f, nil, nil
	}
	var st state
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err == nil && st.Version != stateVersion {
		err = fmt.Errorf("version %d is not known", st.Version)
	}
	if err == nil && (st.Line < 0 || st.Offset < 0 || len(st.PacketIDs) < 1 || len(st.PacketIDs) > connectionsMax || st.Client == "" || st.HeadBytes < 0) {
		err = errors.New("its content makes no sense")
	}
	if err != nil {
		f.close()
		return nil, nil, fmt.Errorf("read state file %s: %w: begin again with --restart", path, err)
	}
	return f, &st, nil
}

// owns reports whether the locked file still has its name: whoever held the
// lock before has removed it at the end.
func (f *stateFile) owns() bool {
	locked, err := f.lock.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(f.lock.Name())
	return err == nil && os.SameFile(locked, named)
}

// save replaces the file. Without sync a power loss may bring the one before
// back, a crash of the process does not.
func (f *stateFile) save(st *state, sync bool) error {
	b, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	tmp := f.path + ".tmp"
	if err := writeFile(tmp, append(b, '\n'), sync); err != nil {
		return fmt.Errorf("write state file: %w", err)
	}
	if err := os.Rename(tmp, f.path); err != nil {
		return fmt.Errorf("write state file: %w", err)
	}
	if !sync {
		return nil
	}
	d, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return fmt.Errorf("write state file: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func writeFile(path string, b []byte, sync bool) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// close lets the next importer in.
func (f *stateFile) close() {
	_ = os.Remove(f.lock.Name()) // an empty file that stays does no harm
	_ = f.lock.Close()           // the lock ends with it
}

// newClient draws the client ids' common beginning.
func newClient() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	return "import-" + hex.EncodeToString(b[:])
}

// matches says why a state does not belong to this import.
func (st *state) matches(other *state) error {
	switch {
	case st.HeadSum != other.HeadSum:
		return errors.New("it belongs to a file with another beginning")
	case st.Mapping != other.Mapping:
		return fmt.Errorf("that import read the columns differently (%s)", st.Mapping)
	case st.Cluster != "" && other.Cluster != "" && st.Cluster != other.Cluster:
		return fmt.Errorf("that import went to another cluster (%s)", st.Cluster)
	}
	return nil
}
