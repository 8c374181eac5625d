package meta

import (
	"errors"
	"fmt"
)

// The refusals of the meta group. They are the same on every node and final: a
// repeat gives the same answer until the state changes.
var (
	ErrNotInitialized = errors.New("cluster is not initialised: run init once on one node")
	ErrInitialized    = errors.New("cluster is already initialised")
	ErrVersion        = errors.New("table has changed meanwhile: read it again")
	ErrUnknownNode    = errors.New("node is not registered")
	ErrIncarnation    = errors.New("node id is registered with another data directory: evict the old one, or restore its directory")
	ErrEvicted        = errors.New("this data directory was evicted from the cluster: start the node with an empty one")
	ErrInvalid        = errors.New("command is not valid")
	ErrMove           = errors.New("shard is placed or moving otherwise: read the table again")
	// ErrAlive is the one refusal that time may cure.
	ErrAlive = errors.New("the incarnation to be replaced is still running: stop it, or correct the node id")
)

// Errors of this node rather than of the group.
var (
	ErrClosed       = errors.New("meta group is closed")
	ErrOtherCluster = errors.New("data directory belongs to another cluster: correct the seeds or the data directory")
	errNoLeader     = errors.New("meta group has no leader")
	errBusy         = errors.New("too many forwarded requests")
)

// code is the wire form of an error, see FORMAT.md.
type code int

const (
	codeOK             code = 0
	codeNoLeader       code = 1
	codeBusy           code = 2
	codeNotInitialized code = 10
	codeInitialized    code = 11
	codeVersion        code = 12
	codeUnknownNode    code = 13
	codeIncarnation    code = 14
	codeEvicted        code = 15
	codeInvalid        code = 16
	codeMove           code = 17
	codeAlive          code = 18
)

// result is what a committed command, or the node that was asked, answers.
type result struct {
	Code   code    `json:"code"`
	Detail string  `json:"detail,omitempty"`
	Epoch  uint64  `json:"epoch,omitempty"`
	Status *status `json:"status,omitempty"`
	// Registered is the peer that has the node id, with codeIncarnation.
	Registered string `json:"registered,omitempty"`
}

func refuse(c code, format string, args ...any) result {
	return result{Code: c, Detail: fmt.Sprintf(format, args...)}
}

func (r result) err() error {
	var base error
	switch r.Code {
	case codeOK:
		return nil
	case codeNoLeader:
		base = errNoLeader
	case codeBusy:
		base = errBusy
	case codeNotInitialized:
		base = ErrNotInitialized
	case codeInitialized:
		base = ErrInitialized
	case codeVersion:
		base = ErrVersion
	case codeUnknownNode:
		base = ErrUnknownNode
	case codeIncarnation:
		base = ErrIncarnation
	case codeEvicted:
		base = ErrEvicted
	case codeMove:
		base = ErrMove
	case codeAlive:
		base = ErrAlive
	default:
		base = ErrInvalid
	}
	if r.Detail == "" {
		return base
	}
	return fmt.Errorf("%w (%s)", base, r.Detail)
}
