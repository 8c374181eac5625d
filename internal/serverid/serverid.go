package serverid

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"
)

// First is the incarnation of a replica that has not begun anew.
const First uint32 = 1

// mark is between peer id and incarnation; no peer id has it.
const mark = "~"

// Of is the server id of an incarnation of a peer's replica.
func Of(peer string, incarnation uint32) raft.ServerID {
	if incarnation <= First {
		return raft.ServerID(peer)
	}
	return raft.ServerID(peer + mark + strconv.FormatUint(uint64(incarnation), 10))
}

// Peer is the peer that a server runs on, which is its address too.
func Peer(id raft.ServerID) string {
	peer, _, _ := strings.Cut(string(id), mark)
	return peer
}

// Parse is the inverse of Of.
func Parse(id raft.ServerID) (peer string, incarnation uint32, err error) {
	peer, number, later := strings.Cut(string(id), mark)
	if !later {
		return peer, First, nil
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || Of(peer, uint32(n)) != id {
		return "", 0, fmt.Errorf("server id %q is not <peer id> or <peer id>~<incarnation from 2 on>", id)
	}
	return peer, uint32(n), nil
}

// Incarnation is that of a server; 0, which nobody has, of an id that is none.
func Incarnation(id raft.ServerID) uint32 {
	_, n, err := Parse(id)
	if err != nil {
		return 0
	}
	return n
}
