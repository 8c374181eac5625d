package memory

import (
	"context"
	"fmt"
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
	return nil
}
