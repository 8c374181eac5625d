package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
)

// Identity is who a client was proven to be. A session belongs to the identity
// that created it: the same client id under another identity is refused.
type Identity struct {
	Name string // "" is nobody in particular, the same for all who are not told apart
}

// Credentials is what a client showed with its CONNECT.
type Credentials struct {
	Client   string // client id, assigned by the broker when the client sent none
	Username string
	Password []byte
	Remote   net.Addr
	Conn     net.Conn // the connection that carries MQTT
	// TLS is the state of an encrypted connection, nil for a plain one.
	TLS *tls.ConnectionState
}

// ErrBadCredentials and ErrBanned tell the client why; every other error of an
// Authenticator is answered "server unavailable", because it is ours.
var (
	ErrBadCredentials = errors.New("bad user name or password")
	ErrBanned         = errors.New("banned")
)

// Authenticator decides who a client is. It may block until ctx ends (the connect
// timeout) and is called from many goroutines.
type Authenticator interface {
	Authenticate(ctx context.Context, c Credentials) (Identity, error)
}

// Action is what a client wants to do with a topic.
type Action uint8

// The actions. A Subscribe is asked with the filter, a Receive with the topic of
// one message, so that a permission taken back later holds for what follows.
const (
	ActionPublish Action = iota
	ActionSubscribe
	ActionReceive
)

// Authorizer decides what a client may do. It must not block nor call the broker: it
// is asked for every packet.
type Authorizer interface {
	Allow(id Identity, client string, action Action, topic string) bool
}

// AllowAll lets everybody in and allows everything; it is what a broker without
// configured seams uses.
type AllowAll struct{}

// Authenticate accepts everybody as the one nameless identity.
func (AllowAll) Authenticate(context.Context, Credentials) (Identity, error) { return Identity{}, nil }

// Allow allows.
func (AllowAll) Allow(Identity, string, Action, string) bool { return true }
