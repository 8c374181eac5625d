package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/api"
)

const (
	dialTimeout   = 5 * time.Second
	headerTimeout = time.Minute // a publish may wait for its commit for 15 s, a cluster-wide query for longer
	idlePerHost   = 64          // as many as a busy importer keeps open

	retriesDefault = 4
	backoffMin     = 100 * time.Millisecond
	backoffMax     = 5 * time.Second
	retryAfterMax  = 30 * time.Second // a longer Retry-After is shortened to this

	problemBytesMax = 1 << 20 // 1,000 line errors fit
)

// Config says which node to ask and how.
type Config struct {
	URL  string       // base address, "http://127.0.0.1:8080"
	HTTP *http.Client // nil is one with timeouts that fit; an overall Timeout would cut streams
	// Retries is how often a harmless call is repeated: 0 is 4, negative is never.
	Retries int
}

// Validate returns every problem of the configuration.
func (c *Config) Validate() error {
	_, err := c.base()
	return err
}

func (c *Config) base() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		err = errors.New("it needs a scheme and a host")
	}
	if err != nil {
		return nil, fmt.Errorf("api address %q is not a URL (%w): use http://HOST:PORT", c.URL, err)
	}
	return u, nil
}

// Client asks one node, which answers for the whole cluster.
type Client struct {
	base    *url.URL
	http    *http.Client
	retries int
}

// New checks the configuration; it connects to nothing.
func New(cfg Config) (*Client, error) {
	base, err := cfg.base()
	if err != nil {
		return nil, err
	}
	c := &Client{base: base, http: cfg.HTTP, retries: cfg.Retries}
	if c.http == nil {
		c.http = &http.Client{Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout:   dialTimeout,
			ResponseHeaderTimeout: headerTimeout,
			MaxIdleConnsPerHost:   idlePerHost,
			IdleConnTimeout:       time.Minute,
		}}
	}
	switch {
	case c.retries == 0:
		c.retries = retriesDefault
	case c.retries < 0:
		c.retries = 0
	}
	return c, nil
}

// Close lets the idle connections go. Calls under way are not touched.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is what a node answered instead of a success.
type Error struct {
	api.Problem
	Request    string        // "GET /api/v1/status"
	RetryAfter time.Duration // 0 when the node gave none
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: %d %s: %s", e.Request, e.Status, e.Title, e.Detail)
}

// Is compares with the sentinels of package api.
func (e *Error) Is(target error) bool {
	switch target {
	case api.ErrNotFound:
		return e.Status == http.StatusNotFound
	case api.ErrInvalid:
		return e.Status == http.StatusBadRequest || e.Status == http.StatusUnprocessableEntity
	case api.ErrPrecondition:
		return e.Status == http.StatusPreconditionFailed
	case api.ErrConflict:
		return e.Status == http.StatusConflict
	case api.ErrUnavailable:
		return transient(e.Status)
	}
	return false
}

func transient(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// call describes one request so that it can be sent again.
type call struct {
	method string
	path   string // begins with /, escaped
	query  url.Values
	header http.Header
	body   []byte
	stream io.Reader // instead of body; forbids a repeat
	once   bool
}

func (r *call) String() string { return r.method + " " + r.path }

// do sends a call, again where that is harmless, and returns a success whose
// body the caller closes.
func (c *Client) do(ctx context.Context, r *call) (*http.Response, error) {
	for attempt := 0; ; attempt++ {
		res, err := c.send(ctx, r)
		if err == nil || r.once || r.stream != nil || attempt >= c.retries || ctx.Err() != nil {
			return res, err
		}
		wait := backoff(attempt)
		var answered *Error
		if errors.As(err, &answered) {
			if !transient(answered.Status) {
				return nil, err
			}
			if answered.RetryAfter > 0 {
				wait = min(answered.RetryAfter, retryAfterMax)
			}
		}
		if sleep(ctx, wait) != nil {
			return nil, err // more use than "context canceled"
		}
	}
}

// backoff doubles from backoffMin, with jitter so that clients spread.
func backoff(attempt int) time.Duration {
	d := min(backoffMin<<min(attempt, 10), backoffMax)
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) send(ctx context.Context, r *call) (*http.Response, error) {
	target := strings.TrimSuffix(c.base.String(), "/") + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	body := r.stream
	if body == nil && r.body != nil {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("build request %s: %w", r, err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", r, ctx.Err())
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the method and address that we name ourselves
		}
		return nil, fmt.Errorf("%s at %s: %w: is the node running, and is this its HTTP address", r, c.base.Host, err)
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()
	return nil, readError(r, res)
}

// readError understands problems, and what a proxy may answer in their place.
func readError(r *call, res *http.Response) error {
	e := &Error{Request: r.String()}
	text, _ := io.ReadAll(io.LimitReader(res.Body, problemBytesMax)) // a part of it is better than none
	if err := json.Unmarshal(text, &e.Problem); err != nil || e.Detail == "" {
		e.Problem = api.Problem{Detail: fmt.Sprintf("the answer is no problem of Sluice (%.120q): check the address", text)}
	}
	e.Status, e.Title = res.StatusCode, http.StatusText(res.StatusCode)
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

// get asks for JSON.
func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	return ask[T](ctx, c, &call{method: http.MethodGet, path: path, query: query})
}

func ask[T any](ctx context.Context, c *Client, r *call) (T, error) {
	var v T
	res, err := c.do(ctx, r)
	if err != nil {
		return v, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusNoContent {
		return v, nil
	}
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read the answer to %s: %w", r, err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 512)) // the rest of the line, so that the connection is used again
	return v, nil
}
