package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const lockFile = "LOCK"

// lockWait is how long a node waits for the process before it: one that was
// killed has its files and ports until the kernel has taken it apart, which takes
// a while where it is large or the machine is busy.
const lockWait = 5 * time.Second

// lockPause lies between two looks at a lock that somebody holds.
const lockPause = 20 * time.Millisecond

// lockDir takes the advisory lock of a data directory, waiting for as long as
// wait while another process has it. The lock lives in the open file description,
// so it ends with the process, however it ends; the pid in the file tells a
// person who holds it.
func lockDir(dir string, wait time.Duration) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("%w: %w: give the user that runs sluice write access to %s, or choose another directory", ErrUnwritable, err, dir)
	}
	deadline := time.Now().Add(wait)
	before := ""
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		before = holder(f)
		if time.Now().After(deadline) {
			err = fmt.Errorf("%w: process %s holds %s: stop it, or give this node a directory of its own", ErrLocked, before, path)
			return nil, errors.Join(err, f.Close())
		}
		time.Sleep(lockPause)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	// Its other files and its ports are let go after this one.
	for running(before) && time.Now().Before(deadline) {
		time.Sleep(lockPause)
	}
	if err := writePID(f); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrUnwritable, err), f.Close())
	}
	return f, nil
}

const holderUnknown = "(unknown)"

func holder(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if s := strings.TrimSpace(string(b)); err == nil && s != "" {
		return s
	}
	return holderUnknown
}

// running reports whether the process with that id, other than this one, still
// has its files, as far as the system tells.
func running(pid string) bool {
	if n, err := strconv.Atoi(pid); err != nil || n == os.Getpid() {
		return false
	}
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("empty lock file: %w", err)
	}
	if _, err := f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	return nil
}
