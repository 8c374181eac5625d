package telemetry

import (
	"strings"
	"testing"
)

func TestTopicsAreRecognisedExactly(t *testing.T) {
	long := strings.Repeat("a", DeviceIDBytesMax)
	for topic, want := range map[string]Topic{
		"devices/sensor-001/telemetry":      {TopicDevice, "sensor-001"},
		"devices/a.b_c:d@e=f~g-h/telemetry": {TopicDevice, "a.b_c:d@e=f~g-h"},
		"devices/" + long + "/telemetry":    {TopicDevice, long},
		"gateways/gw-7/telemetry":           {TopicGateway, "gw-7"},
		"devices/" + long + "a/telemetry":   {TopicInvalid, long + "a"},
		"devices//telemetry":                {TopicInvalid, ""},
		"devices/-a/telemetry":              {TopicInvalid, "-a"},
		"devices/a b/telemetry":             {TopicInvalid, "a b"},
		"devices/\u00e9/telemetry":          {TopicInvalid, "\u00e9"},
		"gateways/+/telemetry":              {TopicInvalid, "+"},
		"devices/telemetry":                 {},
		"devices/a/b/telemetry":             {},
		"devices/a/telemetry/":              {},
		"devices/a/command":                 {},
		"Devices/a/telemetry":               {},
		"/devices/a/telemetry":              {},
		"devices":                           {},
		"":                                  {},
		"$SYS/devices/a/telemetry":          {},
	} {
		if got := ParseTopic(topic); got != want {
			t.Errorf("%q: got %+v, want %+v", topic, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { ParseTopic("devices/sensor-001/telemetry") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
