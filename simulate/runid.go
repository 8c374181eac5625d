package simulate

import (
	"crypto/rand"
	"encoding/hex"
)

// newRunID keeps the client ids of two simulations with the same seed apart:
// an MQTT client takes over the connection of its namesake.
func newRunID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	return hex.EncodeToString(b[:])
}
