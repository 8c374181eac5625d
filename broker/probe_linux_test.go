package broker

import (
	"crypto/tls"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnlyClientsWithoutKeepAliveAreProbed: what an idle client costs must not grow with the clients beyond
// what they ask for.
func TestOnlyClientsWithoutKeepAliveAreProbed(t *testing.T) {
	a := newAuthority(t)
	a.issue("broker", 2, "")
	b := start(t, Config{Endpoints: []Endpoint{{Listen: "127.0.0.1:0", TLS: a.server(ClientAuthNone)}}}, newMemory())
	dial(t, b, 4, "asks", connectOptions{keepAlive: 60})
	dial(t, b, 4, "silent", connectOptions{})
	mustHello(t, tls.Client(dialTCP(t, b.Addrs()[1]), a.client("")), "over TLS, silent")
	want := map[string]bool{"asks": false, "silent": true, "over TLS, silent": true}
	for _, c := range b.all() {
		nc, ok := c.Conn.(*net.TCPConn)
		if !ok {
			nc = lowest(c.Conn).TCPConn
		}
		if got := keepAliveOf(t, nc); got != want[c.client] {
			t.Errorf("client %q: probed %v, want %v", c.client, got, want[c.client])
		}
		delete(want, c.client)
	}
	if len(want) > 0 {
		t.Errorf("not connected: %v", want)
	}
}

func keepAliveOf(t *testing.T, nc *net.TCPConn) bool {
	t.Helper()
	raw, err := nc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	on := 0
	var cerr error
	if err := raw.Control(func(fd uintptr) { on, cerr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE) }); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	return on != 0
}
