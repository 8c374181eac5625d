package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A replica that has voted and forgotten it could vote twice, and elect a leader
// that lacks acknowledged entries.
func TestNodeWhoseLogIsGoneRefusesToStart(t *testing.T) {
	c := start(t)
	post(t, c.Nodes()[0], `{"device_id":"d","sensors":{"temperature":1}}`)
	n := c.Nodes()[0]
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(n.Data, "wal")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, n.Cmd[0], n.Cmd[1:]...).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), "its log is gone") {
		t.Errorf("the node ended with %v (%v), want an error that its log is gone; it said:\n%s", err, ctx.Err(), out)
	}
	if counts := post(t, c.Nodes()[1], `{"device_id":"d","sensors":{"temperature":2}}`); counts.Applied != 1 {
		t.Errorf("the other two: %+v, want the publish applied", counts)
	}
}
