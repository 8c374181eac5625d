package api_test

import (
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestQueriesIncludeTheWriteTheyName(t *testing.T) {
	n := start(t, api.Config{})
	r := n.do("POST", "/api/v1/telemetry", strings.NewReader(`{"device_id":"pump-7","timestamp":"2026-01-23T15:00:00Z","sensors":{"s":1}}`), "Content-Type", "application/x-ndjson")
	counts := decode[api.Counts](t, r)
	if r.status != 200 || counts.Token == "" || r.header.Get("Sluice-Write-Token") != counts.Token {
		t.Fatalf("got %d %s, header %q", r.status, r.body, r.header.Get("Sluice-Write-Token"))
	}
	missing := telemetry.WriteToken("c1", []telemetry.Write{{Shard: 0, Index: 1 << 40}})
	foreign := telemetry.WriteToken("c2", []telemetry.Write{{Shard: 0, Index: 1}})
	for _, path := range []string{"/api/v1/devices/pump-7/readings", "/api/v1/devices/pump-7/readings?step=1m", "/api/v1/devices/pump-7", "/api/v1/devices"} {
		for token, want := range map[string]int{counts.Token: 200, missing: 409, foreign: 400, "nonsense": 400} {
			sep := "?"
			if strings.Contains(path, "?") {
				sep = "&"
			}
			if r := n.get(path + sep + "after_write=" + token); r.status != want {
				t.Errorf("%s after write %s: %d %s, want %d", path, token, r.status, r.body, want)
			}
			if r := n.get(path, "Sluice-After-Write", token); r.status != want {
				t.Errorf("%s with the header %s: %d %s, want %d", path, token, r.status, r.body, want)
			}
		}
	}
	if r := n.get("/api/v1/devices?after_write=" + foreign); !strings.Contains(r.body, "ask the cluster that acknowledged the write") {
		t.Errorf("no remedy for a token of another cluster: %s", r.body)
	}
	if bad := n.do("POST", "/api/v1/telemetry", strings.NewReader(``), "Content-Type", "application/x-ndjson"); strings.Contains(bad.body, "token") {
		t.Errorf("a token for nothing: %s", bad.body)
	}
}
