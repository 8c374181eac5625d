package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/telemetry"
)

// Health is nil when the node's process answers.
func (c *Client) Health(ctx context.Context) error {
	_, err := get[struct{}](ctx, c, "/healthz", nil)
	return err
}

// Ready is nil when the node can take publishes; api.ErrUnavailable with the
// reason otherwise. It asks once: waiting is the caller's business.
func (c *Client) Ready(ctx context.Context) error {
	_, err := ask[struct{}](ctx, c, &call{method: http.MethodGet, path: "/readyz", once: true})
	return err
}

// Status describes nodes and shards.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	return get[api.Status](ctx, c, "/api/v1/status", nil)
}

// Ledger says what became of all messages.
func (c *Client) Ledger(ctx context.Context) (api.Ledger, error) {
	return get[api.Ledger](ctx, c, "/api/v1/ledger", nil)
}

// Metrics is the text that Prometheus would scrape from this node.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	return c.text(ctx, "/metrics")
}

// OpenAPI is the description of the API in JSON.
func (c *Client) OpenAPI(ctx context.Context) ([]byte, error) {
	return c.text(ctx, "/openapi.json")
}

func (c *Client) text(ctx context.Context, path string) ([]byte, error) {
	r := &call{method: http.MethodGet, path: path}
	res, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer to %s: %w", r, err)
	}
	return b, nil
}

// Init bootstraps the cluster, once in its life; api.ErrConflict afterwards.
func (c *Client) Init(ctx context.Context, req api.InitRequest) (api.Status, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return api.Status{}, fmt.Errorf("write the init request: %w", err)
	}
	return ask[api.Status](ctx, c, &call{
		method: http.MethodPost, path: "/api/v1/cluster/init", body: body, once: true,
		header: http.Header{"Content-Type": {"application/json"}},
	})
}

// Drain begins to move leaders and replicas off a node; Status shows how far.
func (c *Client) Drain(ctx context.Context, node telemetry.NodeID) error {
	_, err := ask[struct{}](ctx, c, &call{method: http.MethodPost, path: "/api/v1/nodes/" + url.PathEscape(string(node)) + "/drain"})
	return err
}

// EndDrain lets a node be used again; Ready on it says when it serves.
func (c *Client) EndDrain(ctx context.Context, node telemetry.NodeID) error {
	_, err := ask[struct{}](ctx, c, &call{method: http.MethodDelete, path: "/api/v1/nodes/" + url.PathEscape(string(node)) + "/drain"})
	return err
}

// Evict removes a node for ever; api.ErrConflict while it is alive and holds
// replicas.
func (c *Client) Evict(ctx context.Context, node telemetry.NodeID) error {
	_, err := ask[struct{}](ctx, c, &call{method: http.MethodPost, path: "/api/v1/nodes/" + url.PathEscape(string(node)) + "/evict"})
	return err
}

// Device describes one device; api.ErrNotFound when it is not known.
func (c *Client) Device(ctx context.Context, id string) (api.Device, error) {
	return get[api.Device](ctx, c, "/api/v1/devices/"+url.PathEscape(id), nil)
}

// Replay publishes a quarantined message again, corrected when payload is not
// nil. It leaves the quarantine only if it is accepted.
func (c *Client) Replay(ctx context.Context, id string, payload []byte) (api.Counts, error) {
	return counted(ask[api.Counts](ctx, c, &call{
		method: http.MethodPost, path: "/api/v1/quarantine/" + url.PathEscape(id) + "/replay", body: payload, once: true,
		header: http.Header{"Content-Type": {"application/json"}},
	}))
}

// Drop removes a quarantined message for good.
func (c *Client) Drop(ctx context.Context, id string) error {
	_, err := ask[struct{}](ctx, c, &call{method: http.MethodDelete, path: "/api/v1/quarantine/" + url.PathEscape(id), once: true})
	return err
}

// DeadLetter is one row that the database refused, with its whole message.
func (c *Client) DeadLetter(ctx context.Context, id int64) (api.DeadLetter, error) {
	return get[api.DeadLetter](ctx, c, fmt.Sprintf("/api/v1/deadletters/%d", id), nil)
}

// ReplayDeadLetter stores a row after all that the database refused.
func (c *Client) ReplayDeadLetter(ctx context.Context, id int64) error {
	return c.act(ctx, http.MethodPost, fmt.Sprintf("/api/v1/deadletters/%d/replay", id))
}

// DropDeadLetter removes a refused row for good.
func (c *Client) DropDeadLetter(ctx context.Context, id int64) error {
	return c.act(ctx, http.MethodDelete, fmt.Sprintf("/api/v1/deadletters/%d", id))
}

// AcceptLoss lets a shard go on whose database has lost rows that the log no
// longer has.
func (c *Client) AcceptLoss(ctx context.Context, shard telemetry.ShardID) error {
	return c.act(ctx, http.MethodPost, fmt.Sprintf("/api/v1/shards/%d/accept-loss", shard))
}

func (c *Client) act(ctx context.Context, method, path string) error {
	_, err := ask[struct{}](ctx, c, &call{method: method, path: path, once: true})
	return err
}
