package node

import (
	"strings"
	"testing"
	"time"
)

const minimalConfig = "node: {id: n9, zone: a, data: data}\ncluster:\n  secret: 0123456789abcdef0123456789abcdef\n"

// environment that makes an empty file a whole configuration
var minimalEnv = []string{"SLUICE_NODE_ID=n9", "SLUICE_NODE_ZONE=a", "SLUICE_NODE_DATA=data", "SLUICE_CLUSTER_SECRET=0123456789abcdef0123456789abcdef"}

func TestFileThatNamesNothingKeepsTheDefaults(t *testing.T) {
	for _, text := range []string{"", "\n\n", "# nothing\n", "---\n", "mqtt:\n", "wal: ~\n", "flush: {interval: }\n"} {
		cfg, err := LoadConfig(temp(t, "n.yaml", text), minimalEnv, nil)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if cfg.MQTT.Listen != "127.0.0.1:1883" || cfg.WAL.SegmentMiB != 64 || cfg.Flush.Interval != time.Minute {
			t.Errorf("%q: defaults are lost: %+v", text, cfg)
		}
	}
}

func TestConfigurationErrorsNamePlaceAndRemedy(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"node:\n  zonee: a\n", `[2:3] unknown field "zonee"`},
		{minimalConfig + "flush: {interval: 5}\n", `[4:19] flush.interval: "5" is not a length of time: use a number with its unit`},
		{minimalConfig + "flush:\n  interval: soon\n", `[5:13] flush.interval: "soon" is not a length of time`},
		{minimalConfig + "wal: {segment_mib: 1.5}\n", "[4:20] wal.segment_mib: 1.5 is not a whole number"},
		{minimalConfig + "---\nwal: {segment_mib: 16}\n", "a second document begins"},
		{minimalConfig + "node: {id: n8}\n", `already defined`},
		{"node: {id: n9\n", "[1:7]"},
	} {
		_, err := LoadConfig(temp(t, "n.yaml", c.text), nil, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q on one line", c.text, err, c.want)
		}
	}
	for _, text := range []string{"flush: {interval: 5s}\n", "mqtt: {limits: {connects: 1.5}}\n", "store: {retention: 0s}\n", "mqtt: {limits: {connects: 100}}\n"} {
		if _, err := LoadConfig(temp(t, "n.yaml", minimalConfig+text), nil, nil); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}
