//go:build unix

package backlog

import "golang.org/x/sys/unix"

// Free is how many bytes the file system of a directory would still give; < 0
// when it does not say.
func Free(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return -1
	}
	return int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // the types differ between systems
}

// Size is how many bytes the file system of a directory has; < 0 when it does not
// say.
func Size(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return -1
	}
	return int64(st.Blocks) * int64(st.Bsize) //nolint:unconvert // the types differ between systems
}
