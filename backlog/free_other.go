//go:build !unix

package backlog

// Free is not known on this system: set wal.bytes_max.
func Free(string) int64 { return -1 }

// Size is not known on this system.
func Size(string) int64 { return -1 }
