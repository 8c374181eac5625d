package client

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/api"
)

// pageDefault is how many entries the iterators ask for at a time: about 0.8 MB
// of readings.
const pageDefault = 10_000

// ReadingsQuery selects readings of one device, in order of time.
type ReadingsQuery struct {
	Device string
	Sensor string    // "" is every sensor
	From   time.Time // inclusive; zero is open
	To     time.Time // exclusive; zero is open
	Page   int       // readings per request, 0 is 10,000, at most api.ReadingsLimitMax
	Desc   bool      // the latest first

	// Step asks for buckets of this length instead, with the figures in Agg (see
	// api.Aggregates; empty is all). Readings ignores both, Buckets needs Step.
	Step time.Duration
	Agg  []string
}

func (q *ReadingsQuery) path() string {
	return "/api/v1/devices/" + url.PathEscape(q.Device) + "/readings"
}

func (q *ReadingsQuery) values(cursor string) url.Values {
	v := listValues(q.Page, cursor, q.From, q.To)
	if q.Sensor != "" {
		v.Set("sensor", q.Sensor)
	}
	if q.Desc {
		v.Set("order", "desc")
	}
	return v
}

func (q *ReadingsQuery) bucketValues(cursor string) url.Values {
	v := q.values(cursor)
	v.Set("step", q.Step.String())
	if len(q.Agg) > 0 {
		v.Set("agg", strings.Join(q.Agg, ","))
	}
	return v
}

// Buckets walks all pages of a downsampled query. An error ends the walk.
func (c *Client) Buckets(ctx context.Context, q ReadingsQuery) iter.Seq2[api.Bucket, error] {
	return walk(func(cursor string) ([]api.Bucket, string, error) {
		l, err := get[api.BucketList](ctx, c, q.path(), q.bucketValues(cursor))
		return l.Buckets, l.Next, err
	})
}

func listValues(page int, cursor string, from, to time.Time) url.Values {
	if page == 0 {
		page = pageDefault
	}
	v := url.Values{"limit": {strconv.Itoa(page)}}
	if cursor != "" {
		v.Set("cursor", cursor)
	}
	if !from.IsZero() {
		v.Set("from", api.Time(from.UnixMicro()).String())
	}
	if !to.IsZero() {
		v.Set("to", api.Time(to.UnixMicro()).String())
	}
	return v
}

// ReadingsPage is one page; cursor is Next of the one before, "" for the first.
func (c *Client) ReadingsPage(ctx context.Context, q ReadingsQuery, cursor string) (api.ReadingList, error) {
	return get[api.ReadingList](ctx, c, q.path(), q.values(cursor))
}

// Readings walks all pages. An error ends the walk.
func (c *Client) Readings(ctx context.Context, q ReadingsQuery) iter.Seq2[api.Reading, error] {
	return walk(func(cursor string) ([]api.Reading, string, error) {
		l, err := c.ReadingsPage(ctx, q, cursor)
		return l.Readings, l.Next, err
	})
}

// ReadingsCSV copies all pages to w as one CSV file with one header line, and
// returns the number of rows.
func (c *Client) ReadingsCSV(ctx context.Context, q ReadingsQuery, w io.Writer) (rows int64, err error) {
	cursor := ""
	for {
		n, next, err := c.csvPage(ctx, &q, cursor, w)
		rows += n
		if err != nil || next == "" {
			return rows, err
		}
		cursor = next
	}
}

func (c *Client) csvPage(ctx context.Context, q *ReadingsQuery, cursor string, w io.Writer) (rows int64, next string, err error) {
	r := &call{method: http.MethodGet, path: q.path(), query: q.values(cursor), header: http.Header{"Accept": {"text/csv"}}}
	res, err := c.do(ctx, r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	body := bufio.NewReader(res.Body)
	if cursor != "" {
		if _, err := body.ReadString('\n'); err != nil {
			return 0, "", fmt.Errorf("read the header line of %s: %w", r, err)
		}
		rows = 1 // what stands for the header line below
	}
	lines := &lineCounter{w: w}
	if _, err := io.Copy(lines, body); err != nil {
		return 0, "", fmt.Errorf("copy the rows of %s: %w", r, err)
	}
	return rows + lines.n - 1, nextCursor(res.Header.Get("Link")), nil
}

type lineCounter struct {
	w io.Writer
	n int64
}

func (l *lineCounter) Write(b []byte) (int, error) {
	for _, c := range b {
		if c == '\n' {
			l.n++
		}
	}
	return l.w.Write(b)
}

// nextCursor reads <...?cursor=...>; rel="next".
func nextCursor(link string) string {
	target, rel, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.Contains(rel, `rel="next"`) {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	return u.Query().Get("cursor")
}

// Devices walks the devices that an expression selects ("" is all) in the order of
// their ids; the server documents the language under /api/v1/devices.
func (c *Client) Devices(ctx context.Context, where string) iter.Seq2[api.Device, error] {
	return walk(func(cursor string) ([]api.Device, string, error) {
		v := listValues(0, cursor, time.Time{}, time.Time{})
		if where != "" {
			v.Set("where", where)
		}
		l, err := get[api.DeviceList](ctx, c, "/api/v1/devices", v)
		return l.Devices, l.Next, err
	})
}

// ListQuery selects anomalies by the time they opened, or quarantined messages
// by their receipt, newest first.
type ListQuery struct {
	Device string    // "" is every device
	Open   *bool     // anomalies only; nil is both
	From   time.Time // inclusive; zero is open
	To     time.Time // exclusive; zero is open
	Page   int       // entries per request, 0 is 10,000 (1,000 of quarantine)
}

func (q *ListQuery) values(cursor string) url.Values {
	v := listValues(q.Page, cursor, q.From, q.To)
	if q.Device != "" {
		v.Set("device", q.Device)
	}
	if q.Open != nil {
		v.Set("open", strconv.FormatBool(*q.Open))
	}
	return v
}

// Anomalies walks anomalies, newest first.
func (c *Client) Anomalies(ctx context.Context, q ListQuery) iter.Seq2[api.Anomaly, error] {
	return walk(func(cursor string) ([]api.Anomaly, string, error) {
		l, err := get[api.AnomalyList](ctx, c, "/api/v1/anomalies", q.values(cursor))
		return l.Anomalies, l.Next, err
	})
}

// Quarantine walks quarantined messages, newest first.
func (c *Client) Quarantine(ctx context.Context, q ListQuery) iter.Seq2[api.Quarantined, error] {
	if q.Page == 0 {
		q.Page = api.QuarantineLimitMax
	}
	return walk(func(cursor string) ([]api.Quarantined, string, error) {
		l, err := get[api.QuarantineList](ctx, c, "/api/v1/quarantine", q.values(cursor))
		return l.Quarantine, l.Next, err
	})
}

// DeadLetters walks the rows that the database refused, newest first.
func (c *Client) DeadLetters(ctx context.Context, q ListQuery) iter.Seq2[api.DeadLetter, error] {
	if q.Page == 0 {
		q.Page = api.QuarantineLimitMax
	}
	return walk(func(cursor string) ([]api.DeadLetter, string, error) {
		l, err := get[api.DeadLetterList](ctx, c, "/api/v1/deadletters", q.values(cursor))
		return l.DeadLetters, l.Next, err
	})
}

func walk[T any](fetch func(cursor string) ([]T, string, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		cursor := ""
		for {
			entries, next, err := fetch(cursor)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			cursor = next
		}
	}
}
