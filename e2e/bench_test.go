package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/store/postgres/pgtest"
)

// The benchmark of an outage counts every row once, and what it reports adds up.
func TestBenchOutageFindsEveryRowOnce(t *testing.T) {
	server := pgtest.Start(t, pgtest.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "bench", "outage", "--json", "--database", server.Database(t),
		"--for", "4s", "--steady", "2s", "--rate", "200", "--shards", "6", "--data", t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var o bench.Outage
	if err := json.Unmarshal(out, &o); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	if o.Acked == 0 || o.Refused != 0 || o.Missing != 0 || o.Twice != 0 || o.Rows != 4*int64(o.Acked) || len(o.Phases) != 4 {
		t.Errorf("%s", out)
	}
	if away := o.Phases[1]; o.Backlog.Messages < 100 || o.Backlog.Bytes == 0 || away.CopyRows != 0 || len(away.Memory) != 3 || away.Memory[0].Most == 0 {
		t.Errorf("of the outage: %+v, %+v", o.Backlog, away)
	}
}
