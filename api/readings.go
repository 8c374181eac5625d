package api

import (
	"context"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sluice-iot/sluice/store"
)

const (
	rowsBufferBytes = 32 << 10 // of text collected before it is sent
	rowBytesSlack   = 1 << 10  // room for one row, so that the buffer rarely grows

	// readsWait is how long a query waits for one of Config.ReadsMax places.
	readsWait = 5 * time.Second

	csvHeader = "time,sensor,value,score,quality\n"
)

func (s *Server) readingRoutes(mux *http.ServeMux) {
	ok := jsonResponse[ReadingList](s, "Readings in order of time, or a BucketList where step is given; header Link rel=next names the next page")
	jsonResponse[BucketList](s, "") // names its schema
	ok.Content["text/csv"] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}, Example: csvHeader + "2026-01-23T15:24:46.123456Z,temperature,21.52,0.13,0\n"}
	s.plain(mux, huma.Operation{
		OperationID: "readings", Method: http.MethodGet, Path: "/api/v1/devices/{id}/readings", Summary: "Readings of a device, flushed and not yet flushed as one",
		Parameters: slices.Concat(
			[]*huma.Param{pathParam("id", "device"), queryParam("sensor", "only this sensor", stringSchema())}, periodParams(), pageParams(ReadingsLimitMax),
			[]*huma.Param{
				queryParam("order", "by time", &huma.Schema{Type: huma.TypeString, Enum: []any{"asc", "desc"}, Default: "asc"}),
				queryParam("step", "answer with buckets of this length instead: 30s, 1m, 1h, 1d", stringSchema()),
				queryParam("agg", "with step, what to say of a bucket: some of avg,min,max,last,count; all when it is left out", stringSchema()),
				afterWriteParam(),
				queryParam("format", "wins over the Accept header", &huma.Schema{Type: huma.TypeString, Enum: []any{"json", "csv"}}),
			},
		),
		Responses: map[string]*huma.Response{"200": ok},
	}, s.getReadings)
}

func (s *Server) getReadings(w http.ResponseWriter, r *http.Request, p *params) error {
	if p.query.Has("step") {
		return s.getBuckets(w, r, p)
	}
	if p.query.Has("agg") {
		p.problem("agg needs a step: add step=1m, for example")
	}
	q := store.Query{Device: p.pathDevice(), Sensor: p.query.Get("sensor"), Desc: p.order()}
	q.From, q.To = p.period()
	limit := p.limit(ReadingsLimitMax)
	q.Limit = limit + 1 // one more says that there is a next page
	if c := p.query.Get("cursor"); c != "" {
		var err error
		if q.After, err = decodeReadingCursor(&q, c); err != nil {
			p.problem("%v", err)
		}
	}
	asCSV, writes := p.wantsCSV(r.Header), s.afterWrite(p)
	if err := p.err(); err != nil {
		return err
	}
	release, err := s.acquireRead(r.Context())
	if err != nil {
		return err
	}
	defer release()
	if err := s.await(r.Context(), q.Device, writes); err != nil {
		return err
	}
	points, err := s.backend.Reader.Readings(r.Context(), q)
	if err != nil {
		return err
	}
	points, next := page(points, limit, func(p *store.Point) string { return encodeReadingCursor(&q, p) })
	beginRows(w, r, next, asCSV)
	if asCSV {
		_ = writeCSV(w, points) // the status is out: a client that is gone sees a broken answer
		return nil
	}
	_ = writeReadings(w, points, next) // as above
	return nil
}

// acquireRead waits for a place among the queries that hold a page in memory.
func (s *Server) acquireRead(ctx context.Context) (release func(), err error) {
	wait, cancel := context.WithTimeout(ctx, readsWait)
	defer cancel()
	if err := s.reads.Acquire(wait, 1); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &UnavailableError{Reason: "too many queries at a time"}
	}
	return func() { s.reads.Release(1) }, nil
}

func nextURL(u *url.URL, cursor string) string {
	q := u.Query()
	q.Set("cursor", cursor)
	return (&url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: q.Encode()}).String()
}

// wantsCSV decides between the two forms: format first, then Accept by its
// weights, JSON when nothing speaks for CSV.
func (p *params) wantsCSV(h http.Header) bool {
	switch f := p.query.Get("format"); f {
	case "csv":
		return true
	case "json":
		return false
	case "":
	default:
		p.problem("format %q is not known: use json or csv", f)
		return false
	}
	var csv, rest float64
	for _, part := range strings.Split(strings.Join(h.Values("Accept"), ","), ",") {
		media, args, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil {
			continue
		}
		weight := 1.0
		if q, err := strconv.ParseFloat(args["q"], 64); err == nil {
			weight = q
		}
		switch media {
		case "text/csv":
			csv = max(csv, weight)
		case "application/json", "application/*":
			rest = max(rest, weight)
		}
	}
	return csv > rest
}

// rowWriter collects rows and sends them in pieces. Quoted sensor names are kept:
// a page has few of them.
type rowWriter struct {
	w      io.Writer
	buf    []byte
	quoted map[string][]byte
	quote  func(string) []byte
	err    error
}

func newRowWriter(w io.Writer, quote func(string) []byte) *rowWriter {
	return &rowWriter{w: w, buf: make([]byte, 0, rowsBufferBytes+rowBytesSlack), quoted: map[string][]byte{}, quote: quote}
}

func (r *rowWriter) sensor(name string) {
	q, ok := r.quoted[name]
	if !ok {
		q = r.quote(name)
		r.quoted[name] = q
	}
	r.buf = append(r.buf, q...)
}

func (r *rowWriter) flush(atLeast int) {
	if len(r.buf) >= atLeast && r.err == nil {
		_, r.err = r.w.Write(r.buf)
		r.buf = r.buf[:0]
	}
}

// writeReadings writes a ReadingList row by row.
func writeReadings(w io.Writer, points []store.Point, next string) error {
	r := newRowWriter(w, quoteJSON)
	r.buf = append(r.buf, `{"readings":[`...)
	for i := range points {
		p := &points[i]
		if i > 0 {
			r.buf = append(r.buf, ',')
		}
		r.buf = append(r.buf, `{"time":"`...)
		r.buf = appendTime(r.buf, p.Time)
		r.buf = append(r.buf, `","sensor":`...)
		r.sensor(p.Sensor)
		r.buf = append(r.buf, `,"value":`...)
		r.buf = appendFloat(r.buf, p.Value, 64)
		r.buf = append(r.buf, `,"score":`...)
		r.buf = appendFloat(r.buf, float64(p.Score), 32)
		if p.Quality != 0 {
			r.buf = append(r.buf, `,"quality":`...)
			r.buf = strconv.AppendUint(r.buf, uint64(p.Quality), 10)
		}
		r.buf = append(r.buf, '}')
		if r.flush(rowsBufferBytes); r.err != nil {
			return r.err
		}
	}
	r.buf = append(r.buf, ']')
	if next != "" {
		r.buf = append(r.buf, `,"next":"`+next+`"`...)
	}
	r.buf = append(r.buf, "}\n"...)
	r.flush(0)
	return r.err
}

// writeCSV writes RFC 4180 with a header line, \n between lines, and an empty
// field where a value is not a number.
func writeCSV(w io.Writer, points []store.Point) error {
	r := newRowWriter(w, quoteCSV)
	r.buf = append(r.buf, csvHeader...)
	for i := range points {
		p := &points[i]
		r.buf = append(appendTime(r.buf, p.Time), ',')
		r.sensor(p.Sensor)
		r.buf = append(r.buf, ',')
		if p.Value-p.Value == 0 { // neither NaN nor infinite
			r.buf = appendFloat(r.buf, p.Value, 64)
		}
		r.buf = append(appendFloat(append(r.buf, ','), float64(p.Score), 32), ',')
		r.buf = append(strconv.AppendUint(r.buf, uint64(p.Quality), 10), '\n')
		if r.flush(rowsBufferBytes); r.err != nil {
			return r.err
		}
	}
	r.flush(0)
	return r.err
}

func appendTime(b []byte, us int64) []byte {
	b, _ = Time(us).AppendText(b) // never fails
	return b
}

func quoteJSON(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return []byte(`""`) // a string always marshals
	}
	return b
}

func quoteCSV(s string) []byte {
	if !strings.ContainsAny(s, ",\"\r\n") && strings.TrimSpace(s) == s {
		return []byte(s)
	}
	return []byte(`"` + strings.ReplaceAll(s, `"`, `""`) + `"`)
}
