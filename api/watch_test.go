package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestOperatorsSayWhatIsNoAnomaly(t *testing.T) {
	n := start(t, api.Config{})
	n.cluster.Insert("pump-1", store.Point{Time: 1_000_000, Received: 1_000_000, Sensor: "t", Value: 1})
	n.cluster.AddAnomaly(api.EventOpened, telemetry.Anomaly{ID: "0-1-0", Device: "pump-1", Opened: 1_000_000, Severity: 60})
	later := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"PUT", "/api/v1/devices/pump-1/maintenance", `{"duration":"2h"}`, 204, ""},
		{"PUT", "/api/v1/devices/pump-1/maintenance", fmt.Sprintf(`{"until":%q}`, later.Format(time.RFC3339)), 204, ""},
		{"PUT", "/api/v1/devices/nobody/maintenance", `{"duration":"2h"}`, 404, "nobody"},
		{"PUT", "/api/v1/devices/pump-1/maintenance", `{}`, 400, "duration"},
		{"PUT", "/api/v1/devices/pump-1/maintenance", `{"duration":"soon"}`, 400, "90m"},
		{"PUT", "/api/v1/devices/pump-1/maintenance", `{"duration":"-2h"}`, 400, "DELETE"},
		{"PUT", "/api/v1/devices/pump-1/maintenance", `{"duration":"99999h"}`, 400, "366 days"},
		{"POST", "/api/v1/anomalies/0-1-0/normal", "", 204, ""},
		{"POST", "/api/v1/anomalies/0-9-9/normal", "", 404, "0-9-9"},
		{"PUT", "/api/v1/anomalies/target", `{"alarms_per_device_month":2}`, 204, ""},
		{"PUT", "/api/v1/anomalies/target", `{"alarms_per_device_month":-1}`, 422, "-1"},
		{"PUT", "/api/v1/anomalies/target", `{}`, 400, "alarms_per_device_month"},
		{"PUT", "/api/v1/anomalies/ranges/inner.temperature", `{"min":-40,"max":125}`, 204, ""},
		{"PUT", "/api/v1/anomalies/ranges/battery", `{"min":0,"max":100}`, 204, ""},
		{"PUT", "/api/v1/anomalies/ranges/battery", `{"min":5,"max":5}`, 422, "5"},
		{"PUT", "/api/v1/anomalies/ranges/battery", `{"max":5}`, 400, "min"},
		{"DELETE", "/api/v1/anomalies/ranges/battery", "", 204, ""},
		{"GET", "/api/v1/anomalies/settings", "", 200, `{"alarms_per_device_month":2,"ranges":[{"sensor":"inner.temperature","min":-40,"max":125}]}`},
	} {
		r := n.do(c.method, c.path, strings.NewReader(c.body), "Content-Type", "application/json")
		if r.status != c.status || !strings.Contains(r.body, c.want) {
			t.Errorf("%s %s %s: %d %s, want %d with %q", c.method, c.path, c.body, r.status, r.body, c.status, c.want)
		}
	}
	if got := n.cluster.MaintenanceUntil("pump-1"); got != later.UnixMicro() {
		t.Errorf("maintenance until %d, want %d", got, later.UnixMicro())
	}
	if r := n.get("/api/v1/anomalies"); !strings.Contains(r.body, `"normal":true`) || strings.Contains(r.body, `"closed":null`) {
		t.Errorf("the anomaly is %s", r.body)
	}
	if r := n.do("DELETE", "/api/v1/devices/pump-1/maintenance", nil); r.status != 204 || n.cluster.MaintenanceUntil("pump-1") != 0 {
		t.Errorf("%d %s", r.status, r.body)
	}
}
