package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sluice-iot/sluice/api"
)

// Maintain fulfils api.Watch.
func (c *Cluster) Maintain(_ context.Context, device string, until int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.points[device]; !ok {
		return fmt.Errorf("device %q: %w", device, api.ErrNotFound)
	}
	c.maintenance[device] = until
	return nil
}

// MaintenanceUntil is what the last Maintain said.
func (c *Cluster) MaintenanceUntil(device string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.maintenance[device]
}

// Normal fulfils api.Watch.
func (c *Cluster) Normal(_ context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.anomalies[id]
	if !ok {
		return fmt.Errorf("anomaly %q: %w", id, api.ErrNotFound)
	}
	a.Normal = true
	if a.Closed == 0 {
		a.Closed = max(a.Opened, time.Now().UnixMicro())
	}
	c.anomalies[id] = a
	return nil
}

// Target fulfils api.Watch.
func (c *Cluster) Target(_ context.Context, perMonth float64) error {
	if !(perMonth > 0) {
		return fmt.Errorf("%v alarms: %w", perMonth, api.ErrInvalid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target = perMonth
	return nil
}

// Range fulfils api.Watch.
func (c *Cluster) Range(_ context.Context, r api.SensorRange, clear bool) error {
	if !clear && !(r.Min < r.Max) {
		return fmt.Errorf("range %v to %v: %w", r.Min, r.Max, api.ErrInvalid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if clear {
		delete(c.ranges, r.Sensor)
	} else {
		c.ranges[r.Sensor] = r
	}
	return nil
}

// Settings fulfils api.Watch.
func (c *Cluster) Settings(context.Context) (api.WatchSettings, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := api.WatchSettings{AlarmsPerDeviceMonth: api.Float(c.target), Ranges: []api.SensorRange{}}
	for _, name := range slices.Sorted(maps.Keys(c.ranges)) {
		out.Ranges = append(out.Ranges, c.ranges[name])
	}
	return out, nil
}
