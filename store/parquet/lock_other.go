//go:build !unix

package parquet

import (
	"fmt"
	"os"
	"path/filepath"
)

// lockDir cannot keep other processes out here; the write-ahead log beside the
// store does.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	return f, nil
}
