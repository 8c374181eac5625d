package client_test

import (
	"errors"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
)

// What operators say reaches the server, and an answer that refuses is an error.
func TestOperatorsWords(t *testing.T) {
	n := start(t)
	ctx, c := t.Context(), n.client
	if err := c.SetTarget(ctx, 3); err != nil {
		t.Fatal(err)
	}
	if err := c.SetRange(ctx, api.SensorRange{Sensor: "inner temperature/1", Min: -40, Max: 125}); err != nil {
		t.Fatal(err)
	}
	s, err := c.WatchSettings(ctx)
	if err != nil || s.AlarmsPerDeviceMonth != 3 || len(s.Ranges) != 1 || s.Ranges[0] != (api.SensorRange{Sensor: "inner temperature/1", Min: -40, Max: 125}) {
		t.Fatalf("settings %+v, error %v", s, err)
	}
	if err := c.ClearRange(ctx, "inner temperature/1"); err != nil {
		t.Fatal(err)
	}
	if s, err := c.WatchSettings(ctx); err != nil || len(s.Ranges) != 0 {
		t.Fatalf("settings %+v, error %v", s, err)
	}
	for name, err := range map[string]error{
		"maintenance of nobody": c.Maintain(ctx, "nobody", time.Now().Add(time.Hour)),
		"end of a maintenance":  c.EndMaintenance(ctx, "nobody"),
		"an anomaly of nobody":  c.Normal(ctx, "0-9-9"),
	} {
		if !errors.Is(err, api.ErrNotFound) {
			t.Errorf("%s: %v, want not found", name, err)
		}
	}
	if err := c.SetTarget(ctx, -1); err == nil {
		t.Error("a target below zero was taken")
	}
}
