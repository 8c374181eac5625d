package api

import (
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-iot/sluice/store"
)

// Aggregates are the figures that a bucket may be asked for, in the order in
// which they are written when agg is left out.
func Aggregates() []string { return []string{"avg", "min", "max", "last", "count"} }

// Bounds of a step: shorter ones are not downsampling, longer ones are one bucket.
const (
	stepMin = time.Millisecond
	stepMax = 366 * 24 * time.Hour
)

// ParseStep reads the length of buckets: a Go duration, or whole days as in 7d.
func ParseStep(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		if n > 366 {
			n = 367 // refused below, without an overflow
		}
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d < stepMin || d > stepMax || d%time.Microsecond != 0 {
		return 0, invalid("step %q is not a length of time from 1ms to 366d: use 30s, 1m, 1h or 1d", s)
	}
	return d, nil
}

// Bucket is what there is to say about the readings of one sensor from Time on,
// for the length of the step. Figures that were not asked for are absent.
type Bucket struct {
	Time   Time    `json:"time" doc:"where the bucket begins: a multiple of the step since 1970-01-01 UTC"`
	Sensor string  `json:"sensor" example:"temperature"`
	Avg    *Float  `json:"avg,omitempty"`
	Min    *Float  `json:"min,omitempty"`
	Max    *Float  `json:"max,omitempty"`
	Last   *Float  `json:"last,omitempty" doc:"of the latest reading by device time"`
	Count  *uint64 `json:"count,omitempty"`
}

// BucketList answers GET /api/v1/devices/{id}/readings with a step. Buckets
// without readings are absent.
type BucketList struct {
	Buckets []Bucket `json:"buckets" nullable:"false"`
	Next    string   `json:"next,omitempty" doc:"cursor of the next page, absent on the last"`
}

func (l BucketList) writeJSON(w io.Writer) error { return writeList(w, "buckets", l.Buckets, l.Next) }

func bucketOf(b *store.Bucket, aggs []string) Bucket {
	out := Bucket{Time: Time(b.Start), Sensor: b.Sensor}
	for _, a := range aggs {
		f := Float(figure(b, a))
		switch a {
		case "avg":
			out.Avg = &f
		case "min":
			out.Min = &f
		case "max":
			out.Max = &f
		case "last":
			out.Last = &f
		default:
			out.Count = &b.Count
		}
	}
	return out
}

// figure is one aggregate but the count.
func figure(b *store.Bucket, agg string) float64 {
	switch agg {
	case "avg":
		return b.Avg()
	case "min":
		return b.Min
	case "max":
		return b.Max
	default:
		return b.Last
	}
}

// aggregates reads agg: a list without repeats.
func (p *params) aggregates() []string {
	s := p.query.Get("agg")
	if s == "" {
		return Aggregates()
	}
	var list []string
	for _, a := range strings.Split(s, ",") {
		switch {
		case !slices.Contains(Aggregates(), a):
			p.problem("agg %q is not known: use %s, separated by commas", a, strings.Join(Aggregates(), ", "))
		case slices.Contains(list, a):
			p.problem("agg %s is there twice: leave one out", a)
		}
		list = append(list, a)
	}
	return list
}

// getBuckets answers for readings with a step.
func (s *Server) getBuckets(w http.ResponseWriter, r *http.Request, p *params) error {
	q := store.Aggregate{Device: p.pathDevice(), Sensor: p.query.Get("sensor")}
	step, err := ParseStep(p.query.Get("step"))
	if err != nil {
		p.problem("%v", err)
	}
	q.StepMicros = step.Microseconds()
	q.From, q.To = p.period()
	limit := p.limit(ReadingsLimitMax)
	q.Limit = limit + 1
	if p.order() {
		p.problem("order=desc is for readings: buckets come in ascending order, leave it out")
	}
	if c := p.query.Get("cursor"); c != "" {
		if q.After, err = decodeBucketCursor(&q, c); err != nil {
			p.problem("%v", err)
		}
	}
	aggs, asCSV, writes := p.aggregates(), p.wantsCSV(r.Header), s.afterWrite(p)
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
	buckets, err := s.backend.Reader.Buckets(r.Context(), q)
	if err != nil {
		return err
	}
	buckets, next := page(buckets, limit, func(b *store.Bucket) string { return encodeBucketCursor(&q, b) })
	beginRows(w, r, next, asCSV)
	if asCSV {
		_ = writeBucketsCSV(w, buckets, aggs) // the status is out: a client that is gone sees a broken answer
		return nil
	}
	list := BucketList{Next: next, Buckets: make([]Bucket, len(buckets))}
	for i := range buckets {
		list.Buckets[i] = bucketOf(&buckets[i], aggs)
	}
	_ = list.writeJSON(w) // as above
	return nil
}

// beginRows writes the headers of a page of rows.
func beginRows(w http.ResponseWriter, r *http.Request, next string, asCSV bool) {
	if next != "" {
		w.Header().Set("Link", "<"+nextURL(r.URL, next)+`>; rel="next"`)
	}
	w.Header().Set("Vary", "Accept")
	if asCSV {
		w.Header().Set("Content-Type", "text/csv; charset=utf-8; header=present")
	} else {
		w.Header().Set("Content-Type", "application/json")
	}
}

func writeBucketsCSV(w io.Writer, buckets []store.Bucket, aggs []string) error {
	r := newRowWriter(w, quoteCSV)
	r.buf = append(r.buf, "time,sensor,"+strings.Join(aggs, ",")+"\n"...)
	for i := range buckets {
		b := &buckets[i]
		r.buf = append(appendTime(r.buf, b.Start), ',')
		r.sensor(b.Sensor)
		for _, a := range aggs {
			r.buf = append(r.buf, ',')
			if a == "count" {
				r.buf = strconv.AppendUint(r.buf, b.Count, 10)
			} else if f := figure(b, a); f-f == 0 { // neither NaN nor infinite
				r.buf = appendFloat(r.buf, f, 64)
			}
		}
		r.buf = append(r.buf, '\n')
		if r.flush(rowsBufferBytes); r.err != nil {
			return r.err
		}
	}
	r.flush(0)
	return r.err
}

// Figure is one aggregate by its name; not ok when it was not asked for.
func (b *Bucket) Figure(agg string) (value float64, ok bool) {
	if agg == "count" && b.Count != nil {
		return float64(*b.Count), true
	}
	f := map[string]*Float{"avg": b.Avg, "min": b.Min, "max": b.Max, "last": b.Last}[agg]
	if f == nil {
		return 0, false
	}
	return float64(*f), true
}
