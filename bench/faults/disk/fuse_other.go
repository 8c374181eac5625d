//go:build !linux

package disk

// Available is nil where disks can be mounted.
func Available() error { return ErrUnavailable }

// Mount needs Linux.
func Mount(string, string) (*Disk, error) { return nil, ErrUnavailable }
