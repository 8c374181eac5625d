package session

import "testing"

func TestWhatIsBelowADeviceAndNotItsTelemetryIsUrgent(t *testing.T) {
	for topic, want := range map[string]bool{
		"devices/d1/commands": true, "devices/d1/commands/reboot": true, "devices/d1/alarms": true, "devices/d1/telemetry/x": true,
		"anomalies/d1": true, "anomalies/d1/x": true,
		"devices/d1/telemetry": false, "gateways/g1/telemetry": false, "devices/d1": false, "devices": false, "devices//commands": false,
		"anomalies": false, "logs/d1": false, "": false, "devices/!/telemetry": false,
	} {
		if got := Urgent(topic); got != want {
			t.Errorf("Urgent(%q) = %v, want %v", topic, got, want)
		}
	}
}
