package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Precondition says for which state of a device's attributes a put may happen;
// the zero value is for any.
type Precondition struct {
	IfMatch     string // an ETag that was read, or "*" for a device that is known
	IfNoneMatch string // "*" for a device that is not known yet
}

// Attributes reads a device's attributes and their entity tag, never stale
// ones; api.ErrNotFound when the device is not known.
func (c *Client) Attributes(ctx context.Context, device string) (attributes map[string]string, etag string, err error) {
	attributes, etag, _, err = c.attributes(ctx, &call{method: http.MethodGet, path: attributesPath(device)})
	return attributes, etag, err
}

// PutAttributes replaces a device's attributes and returns their new entity
// tag; api.ErrPrecondition when the precondition did not hold. It may be sent
// several times and has one effect all the same; after an api.ErrUnavailable
// it may have had it.
func (c *Client) PutAttributes(ctx context.Context, device string, attributes map[string]string, when Precondition) (etag string, created bool, err error) {
	if attributes == nil {
		attributes = map[string]string{}
	}
	body, err := json.Marshal(attributes)
	if err != nil {
		return "", false, fmt.Errorf("write attributes of %s: %w", device, err)
	}
	header := http.Header{"Content-Type": {"application/json"}, "Idempotency-Key": {rand.Text()}}
	if when.IfMatch != "" {
		header.Set("If-Match", when.IfMatch)
	}
	if when.IfNoneMatch != "" {
		header.Set("If-None-Match", when.IfNoneMatch)
	}
	_, etag, status, err := c.attributes(ctx, &call{method: http.MethodPut, path: attributesPath(device), body: body, header: header})
	return etag, status == http.StatusCreated, err
}

func attributesPath(device string) string {
	return "/api/v1/devices/" + url.PathEscape(device) + "/attributes"
}

func (c *Client) attributes(ctx context.Context, r *call) (out map[string]string, etag string, status int, err error) {
	res, err := c.do(ctx, r)
	if err != nil {
		return nil, "", 0, err
	}
	defer func() { _ = res.Body.Close() }()
	out = map[string]string{}
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		return nil, "", 0, fmt.Errorf("read the answer to %s: %w", r, err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 512)) // the rest of the line, so that the connection is used again
	return out, res.Header.Get("ETag"), res.StatusCode, nil
}
