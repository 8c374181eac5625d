package devcluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Free ports are looked for below the range that the kernel hands out to
// outgoing connections (32,768 and up on Linux), so that none of those takes a
// port between the look and its use.
const (
	portsFrom  = 20000
	portsTo    = 32000
	portsTries = 200
)

// FreePorts finds the first of n TCP ports in a row on loopback that nobody
// listens on right now. It holds none of them.
func FreePorts(n int) (int, error) {
	for range portsTries {
		first := portsFrom + rand.IntN(portsTo-portsFrom-n)
		if free(first, n) {
			return first, nil
		}
	}
	return 0, errors.New("no free ports in a row: close some listeners between 20000 and 32000")
}

func free(first, n int) bool {
	for i := range n {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", first+i))
		if err != nil {
			return false
		}
		_ = l.Close() // a probe
	}
	return true
}
