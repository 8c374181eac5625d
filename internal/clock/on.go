//go:build mutations

package clock

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const lookEvery = 20 * time.Millisecond

var offset = follow(os.Getenv(Env))

func machineOffset() time.Duration {
	if offset == nil {
		return 0
	}
	return time.Duration(offset.Load())
}

// follow reads the file as long as the process lives. A file that is not there
// yet is no offset; what cannot be read as a number ends the process, because a
// test that believes in a wrong clock would prove nothing.
func follow(path string) *atomic.Int64 {
	if path == "" {
		return nil
	}
	var off atomic.Int64
	look := func() {
		b, err := os.ReadFile(path)
		if err != nil {
			return
		}
		ms, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s %s: %v: want milliseconds\n", Env, path, err)
			os.Exit(2)
		}
		off.Store(int64(time.Duration(ms) * time.Millisecond))
	}
	look()
	go func() {
		for {
			time.Sleep(lookEvery)
			look()
		}
	}()
	return &off
}
