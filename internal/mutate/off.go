//go:build !mutations

package mutate

// On is false.
func On(string) bool { return false }
