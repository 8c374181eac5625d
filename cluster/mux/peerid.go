package mux

import (
	"fmt"
	"strconv"
	"strings"
)

// peerBytesMax bounds a peer id: the node's name has at most 118 bytes.
const peerBytesMax = 127

// ParsePeer splits "<node>.<incarnation>"; the incarnation is eight lower-case
// hexadecimal digits, made when the node's data directory was created.
func ParsePeer(peer string) (node string, incarnation uint32, err error) {
	dot := strings.LastIndexByte(peer, '.')
	if dot <= 0 || len(peer) > peerBytesMax || len(peer)-dot-1 != 8 || strings.ToLower(peer[dot:]) != peer[dot:] {
		return "", 0, fmt.Errorf("peer id %q is not <node>.<8 hex digits>", peer)
	}
	n, err := strconv.ParseUint(peer[dot+1:], 16, 32)
	if err != nil {
		return "", 0, fmt.Errorf("peer id %q is not <node>.<8 hex digits>", peer)
	}
	return peer[:dot], uint32(n), nil
}
