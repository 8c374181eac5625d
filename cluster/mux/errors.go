package mux

import (
	"errors"
	"fmt"
)

// What a request can end with; branch with errors.Is. The comment says whether
// the peer may have executed the request.
var (
	ErrNotConnected   = errors.New("peer is not connected")       // not executed
	ErrBusy           = errors.New("too much is waiting already") // not executed
	ErrNoGroup        = errors.New("group does not run there")    // not executed
	ErrNoHandler      = errors.New("kind has no handler there")   // not executed
	ErrTooLarge       = errors.New("frame is too large")          // not executed
	ErrConnectionLost = errors.New("connection lost")             // unknown
	ErrTimeout        = errors.New("no answer in time")           // unknown
	ErrClosed         = errors.New("transport is closed")         // unknown
	ErrSuperseded     = errors.New("superseded by a newer snapshot")
)

// RemoteError is the text of an error that the peer's handler, raft or gate
// returned. The request was executed as far as that error says.
type RemoteError struct {
	Peer string
	Text string
}

func (e *RemoteError) Error() string { return e.Text }

// RefusedError says why a handshake came to nothing. Trying again helps only
// after one of the two nodes is configured differently.
type RefusedError struct {
	Peer   string // whom we called, or who called us (unproven)
	Reason string
	// Evicted says that the peer has proven to be of our cluster and knows that
	// this node's incarnation was evicted from it.
	Evicted bool
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("connection with %s refused: %s", e.Peer, e.Reason)
}

// status is how a response frame ended.
type status uint8

// The numbers are part of the frame format.
const (
	statusOK        status = 0
	statusError     status = 1 // body is the text
	statusBusy      status = 2
	statusNoGroup   status = 3
	statusNoHandler status = 4
	statusWrongPeer status = 5
	statusMalformed status = 6 // body is the text
	statusWorking   status = 7 // stream only: the answer is still to come
)

// errorTextBytesMax bounds an error's text on the wire: it is for people.
const errorTextBytesMax = 4 << 10

// remoteError turns a response's status and body into the caller's error.
func remoteError(peer string, s status, body []byte) error {
	switch s {
	case statusOK:
		return nil
	case statusBusy:
		return fmt.Errorf("call %s: %w", peer, ErrBusy)
	case statusNoGroup:
		return fmt.Errorf("call %s: %w", peer, ErrNoGroup)
	case statusNoHandler:
		return fmt.Errorf("call %s: %w", peer, ErrNoHandler)
	case statusWrongPeer:
		return fmt.Errorf("call %s: it runs as another incarnation: %w", peer, ErrNotConnected)
	default:
		return &RemoteError{Peer: peer, Text: string(body)}
	}
}

// errorStatus is the way back: what a handler's error looks like on the wire.
func errorStatus(err error) (status, string) {
	switch {
	case err == nil:
		return statusOK, ""
	case errors.Is(err, ErrBusy):
		return statusBusy, ""
	default:
		text := err.Error()
		return statusError, text[:min(len(text), errorTextBytesMax)]
	}
}
