package devcluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
)

// Free ports are looked for below the range that the kernel hands out to
// outgoing connections (32,768 and up on Linux), so that none of those takes a
// port between the look and its use.
const (
	portsFrom  = 20000
	portsTo    = 32000
	portsTries = 200
	blockPorts = 16 // are given out together
	blocksHeld = 64 // by a process, the latest ones
)

// held are the blocks that nobody else is given: the ports of a node that is down
// are free, and must not go to a cluster that starts meanwhile, in this process or
// in another one.
var held struct {
	sync.Mutex
	blocks []net.Listener
}

// FreePorts finds the first of n ports in a row on loopback on which nobody listens
// right now, neither on TCP nor on UDP. On Linux no other call is given one of them
// before this process ends or has asked for a thousand more.
func FreePorts(n int) (int, error) {
	blocks := (n + blockPorts - 1) / blockPorts
	for range portsTries {
		first := portsFrom + blockPorts*rand.IntN((portsTo-portsFrom)/blockPorts-blocks+1)
		if hold(first, blocks) && free(first, n) {
			return first, nil
		}
	}
	return 0, errors.New("no free ports in a row: close some listeners between 20000 and 32000")
}

// hold takes blocks for this process. Where the system has no sockets that end with
// their process it takes nothing.
func hold(first, blocks int) bool {
	if runtime.GOOS != "linux" {
		return true
	}
	var taken []net.Listener
	for i := range blocks {
		l, err := net.Listen("unix", fmt.Sprintf("@sluice-ports-%d", first+i*blockPorts))
		if err != nil {
			for _, l := range taken {
				_ = l.Close() // a mark, nothing is sent
			}
			return false
		}
		taken = append(taken, l)
	}
	held.Lock()
	defer held.Unlock()
	held.blocks = append(held.blocks, taken...)
	for ; len(held.blocks) > blocksHeld; held.blocks = slices.Delete(held.blocks, 0, 1) {
		_ = held.blocks[0].Close() // a mark, nothing is sent
	}
	return true
}

func free(first, n int) bool {
	for i := range n {
		at := loopback(first + i)
		l, err := net.Listen("tcp", at)
		if err != nil {
			return false
		}
		_ = l.Close() // a probe
		u, err := net.ListenPacket("udp", at)
		if err != nil {
			return false
		}
		_ = u.Close() // a probe
	}
	return true
}
