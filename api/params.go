package api

import (
	"context"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/sluice-iot/sluice/telemetry"
)

// Limits of a page; those of readings hold for devices and anomalies too.
const (
	ReadingsLimitDefault = 1000
	ReadingsLimitMax     = 100_000 // ~8 MB of JSON
	// QuarantineLimitMax is lower because an entry carries a whole payload: up to
	// 256 MB at the default size limit.
	QuarantineLimitMax = 1000
)

// params reads the parameters of one request and collects what is wrong with
// them, so that the user learns of everything at once.
type params struct {
	path     func(name string) string
	header   func(name string) string
	query    url.Values
	problems []string
}

// Resolve fills params when huma is the caller.
func (p *params) Resolve(ctx huma.Context) []error {
	u := ctx.URL()
	p.header = ctx.Header
	p.open(&u, ctx.Param, ctx.Operation())
	return nil
}

// open refuses parameters that the operation does not know: a filter with a
// typing error must not silently select everything.
func (p *params) open(u *url.URL, path func(string) string, op *huma.Operation) {
	p.path = path
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		p.problem("the query string is malformed (%v): escape %%, ; and + in values", err)
	}
	p.query = query
	var known []string
	for _, d := range op.Parameters {
		if d.In == "query" {
			known = append(known, d.Name)
		}
	}
	for _, name := range sortedKeys(query) {
		if !slices.Contains(known, name) {
			if len(known) == 0 {
				p.problem("parameter %q is not known here: leave it out", name)
			} else {
				p.problem("parameter %q is not known here: use %s", name, strings.Join(known, ", "))
			}
		} else if len(query[name]) > 1 {
			p.problem("parameter %s is given %d times: give it once", name, len(query[name]))
		}
	}
}

func (p *params) problem(format string, args ...any) {
	p.problems = append(p.problems, newProblem(0, format, args...).Detail)
}

// err is nil or one problem that lists all.
func (p *params) err() error {
	if len(p.problems) == 0 {
		return nil
	}
	return invalid("%s", strings.Join(p.problems, "; "))
}

func (p *params) limit(most int) int {
	s := p.query.Get("limit")
	if s == "" {
		return ReadingsLimitDefault
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most {
		p.problem("limit %q is not a number from 1 to %d: ask for less and go on with the cursor in next", s, most)
		return ReadingsLimitDefault
	}
	return n
}

// headerAfterWrite says what the parameter after_write says.
const headerAfterWrite = "Sluice-After-Write"

// afterWrite reads what the answer must include.
func (s *Server) afterWrite(p *params) []telemetry.Write {
	token := p.query.Get("after_write")
	if token == "" {
		token = p.header(headerAfterWrite)
	}
	if token == "" {
		return nil
	}
	writes, err := telemetry.ParseWriteToken(s.backend.Cluster.ClusterID(), token)
	if err != nil {
		p.problem("after_write: %v", err)
	}
	return writes
}

// await waits for nothing without writes.
func (s *Server) await(ctx context.Context, device string, writes []telemetry.Write) error {
	if len(writes) == 0 {
		return nil
	}
	return s.backend.Reader.Await(ctx, device, writes)
}

func afterWriteParam() *huma.Param {
	return queryParam("after_write", "token of a write that the answer must include; also as header "+headerAfterWrite, stringSchema())
}

// order reports whether the latest come first.
func (p *params) order() (desc bool) {
	s := p.query.Get("order")
	if s != "" && s != "asc" && s != "desc" {
		p.problem("order %q is not known: use asc or desc", s)
	}
	return s == "desc"
}

// period is the half-open interval [from, to) in microseconds.
func (p *params) period() (from, to int64) {
	from, to = p.time("from", math.MinInt64), p.time("to", math.MaxInt64)
	if from > to {
		p.problem("from %s is after to %s: exchange them", p.query.Get("from"), p.query.Get("to"))
	}
	return from, to
}

func (p *params) time(name string, open int64) int64 {
	s := p.query.Get(name)
	if s == "" {
		return open
	}
	t, err := ParseTime(s)
	if err != nil {
		p.problem("%s %v", name, err)
		return open
	}
	return int64(t)
}

func (p *params) boolean(name string) *bool {
	s := p.query.Get(name)
	if s == "" {
		return nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		p.problem("%s %q is neither true nor false: use one of them, or leave it out for both", name, s)
		return nil
	}
	return &v
}

const deviceRule = "a device id is 1 to 128 of A-Z a-z 0-9 . _ : @ = ~ - and begins with a letter or digit"

// device is the filter, "" for none.
func (p *params) device() string {
	s := p.query.Get("device")
	if s != "" && !telemetry.ValidDeviceID(s) {
		p.problem("device %q is not a device id: %s", s, deviceRule)
	}
	return s
}

// pathDevice is the device in the path.
func (p *params) pathDevice() string {
	s := p.path("id")
	if !telemetry.ValidDeviceID(s) {
		p.problem("%q is not a device id: %s", s, deviceRule)
	}
	return s
}

func (p *params) position() *Position {
	s := p.query.Get("cursor")
	if s == "" {
		return nil
	}
	pos, err := decodePosition(s)
	if err != nil {
		p.problem("%v", err)
		return nil
	}
	return &pos
}

func sortedKeys(v url.Values) []string {
	keys := make([]string, 0, len(v))
	for k := range v {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Documentation of the parameters; it is also the list of those that are known.

func queryParam(name, doc string, schema *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: doc, Schema: schema}
}

func stringSchema() *huma.Schema { return &huma.Schema{Type: huma.TypeString} }

func pageParams(most int) []*huma.Param {
	low, high := 1.0, float64(most)
	return []*huma.Param{
		queryParam("limit", "entries on a page", &huma.Schema{Type: huma.TypeInteger, Minimum: &low, Maximum: &high, Default: ReadingsLimitDefault}),
		queryParam("cursor", "next of the page before", stringSchema()),
	}
}

func periodParams() []*huma.Param {
	return []*huma.Param{
		queryParam("from", "inclusive; RFC 3339 or milliseconds since the epoch", stringSchema()),
		queryParam("to", "exclusive; RFC 3339 or milliseconds since the epoch", stringSchema()),
	}
}

func deviceParam() *huma.Param {
	return queryParam("device", "only this device", stringSchema())
}

func pathParam(name, doc string) *huma.Param {
	return &huma.Param{Name: name, In: "path", Required: true, Description: doc, Schema: stringSchema()}
}
