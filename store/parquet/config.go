package parquet

import (
	"errors"
	"fmt"
)

// Config of a Store. The zero value of every field but Dir is its default.
type Config struct {
	// Dir holds the shards' folders. It is created when absent (its parent must
	// exist) and must belong to this store alone.
	Dir string

	// Namespace of every batch; default 0. A store of another namespace needs a
	// directory of its own. Batches of other namespaces are refused.
	Namespace uint32

	// OpenFilesMax bounds the files kept open for reading; default 256. A lower
	// figure saves descriptors and about 30 KiB of memory each, a higher one
	// saves queries over many files from parsing footers again.
	OpenFilesMax int
}

const (
	// openFilesDefault times 30 KiB of parsed footer and page index is 8 MiB,
	// and leaves most of the 1,024 descriptors that a shell grants.
	openFilesDefault = 256
	// openFilesLimit keeps a typing error from taking every descriptor.
	openFilesLimit = 65536
)

func (c Config) withDefaults() Config {
	if c.OpenFilesMax == 0 {
		c.OpenFilesMax = openFilesDefault
	}
	return c
}

// Validate returns every problem of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("store directory is empty: set a path"))
	}
	if c.OpenFilesMax < 0 || c.OpenFilesMax > openFilesLimit {
		errs = append(errs, fmt.Errorf("open files %d: must be between 1 and %d, or 0 for the default", c.OpenFilesMax, openFilesLimit))
	}
	return errors.Join(errs...)
}
