//go:build unix

package parquet

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lockDir keeps other processes out of the directory until the file is closed:
// a second store would take the first one's temporary files for leftovers.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("store directory %s is in use by another process, stop it or choose another directory: %w", dir, err)
	}
	return f, nil
}
