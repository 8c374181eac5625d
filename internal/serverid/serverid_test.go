package serverid

import (
	"testing"

	"github.com/hashicorp/raft"
)

func TestServerIDsNamePeerAndIncarnation(t *testing.T) {
	const peer = "n1.5f3a9c1e"
	for n, want := range map[uint32]raft.ServerID{0: peer, 1: peer, 2: peer + "~2", 1<<32 - 1: peer + "~4294967295"} {
		id := Of(peer, n)
		if id != want {
			t.Errorf("incarnation %d is %q, want %q", n, id, want)
		}
		if got, k, err := Parse(id); err != nil || got != peer || k != max(n, First) || Peer(id) != peer || Incarnation(id) != k {
			t.Errorf("%q is %q, %d, %v", id, got, k, err)
		}
	}
	for _, id := range []raft.ServerID{peer + "~", peer + "~0", peer + "~1", peer + "~02", peer + "~-3", peer + "~4294967296", peer + "~2~3"} {
		if got, n, err := Parse(id); err == nil || Incarnation(id) != 0 {
			t.Errorf("%q is %q, %d", id, got, n)
		}
	}
}
