package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/sluice-iot/sluice/api"
)

// Maintain says that nothing of a device is an anomaly until a time;
// api.ErrNotFound when the device is not known.
func (c *Client) Maintain(ctx context.Context, device string, until time.Time) error {
	return c.put(ctx, "/api/v1/devices/"+url.PathEscape(device)+"/maintenance", map[string]any{"until": until.UTC()})
}

// EndMaintenance ends a maintenance early.
func (c *Client) EndMaintenance(ctx context.Context, device string) error {
	_, err := ask[struct{}](ctx, c, &call{method: http.MethodDelete, path: "/api/v1/devices/" + url.PathEscape(device) + "/maintenance"})
	return err
}

// Normal says that an anomaly was none; api.ErrNotFound when it is not listed.
func (c *Client) Normal(ctx context.Context, id string) error {
	return c.act(ctx, http.MethodPost, "/api/v1/anomalies/"+url.PathEscape(id)+"/normal")
}

// WatchSettings are the target of false alarms and the physical ranges.
func (c *Client) WatchSettings(ctx context.Context) (api.WatchSettings, error) {
	return get[api.WatchSettings](ctx, c, "/api/v1/anomalies/settings", nil)
}

// SetTarget sets how many false alarms a device may raise in 30 days.
func (c *Client) SetTarget(ctx context.Context, perMonth float64) error {
	return c.put(ctx, "/api/v1/anomalies/target", map[string]any{"alarms_per_device_month": perMonth})
}

// SetRange says what a sensor can measure.
func (c *Client) SetRange(ctx context.Context, r api.SensorRange) error {
	return c.put(ctx, "/api/v1/anomalies/ranges/"+url.PathEscape(r.Sensor), map[string]any{"min": r.Min, "max": r.Max})
}

// ClearRange forgets it.
func (c *Client) ClearRange(ctx context.Context, sensor string) error {
	_, err := ask[struct{}](ctx, c, &call{method: http.MethodDelete, path: "/api/v1/anomalies/ranges/" + url.PathEscape(sensor)})
	return err
}

func (c *Client) put(ctx context.Context, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode body: %w", err)
	}
	_, err = ask[struct{}](ctx, c, &call{method: http.MethodPut, path: path, body: b, header: http.Header{"Content-Type": {"application/json"}}})
	return err
}
