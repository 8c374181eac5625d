package wal

import "github.com/hashicorp/raft"

type op uint8

const (
	opStore op = iota
	opDelete
	opStable
	opFloor  // persist Group.floor
	opRemove // forget the group
	opMove   // relocate entries
	opTick   // nothing: wakes the writer
)

// request is what a caller waits for the writer to do.
type request struct {
	op       op
	g        *Group
	logs     []*raft.Log
	at       int    // logs before this one are durable
	commit   uint64 // staged raft commit index
	bulk     bool   // may not use the reserve
	min, max uint64
	body     []byte
	moves    []move
	done     chan error
}

// move is an entry that the janitor wants at the head.
type move struct {
	g    *Group
	from location
	rec  record // as it is to be written
}

func newRequest(o op, g *Group) *request {
	return &request{op: o, g: g, done: make(chan error, 1)}
}
