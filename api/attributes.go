package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/zeebo/xxh3"

	"github.com/sluice-iot/sluice/telemetry"
)

const (
	// attributesBodyBytesMax bounds a PUT of attributes: 16 KiB of keys and values
	// with every byte escaped, and room for white space.
	attributesBodyBytesMax = 128 << 10
	// attributesWait is how long a read or a PUT looks for a leader that answers,
	// several times what an election takes.
	attributesWait = 5 * time.Second
	tagsMax        = 32 // entity tags in one precondition
)

// Attributes keeps the attributes of devices as linearizable registers.
type Attributes interface {
	// Attributes reads what a device's attributes are at some moment of the call;
	// ErrNotFound when the device is not known.
	Attributes(ctx context.Context, device string) (DeviceAttributes, error)
	// PutAttributes replaces a device's attributes, which makes the device when it
	// is not known. ErrPrecondition when a precondition did not hold, ErrInvalid
	// for attributes that cannot be stored; after either nothing has changed. An
	// UnavailableError says whether the outcome is unknown.
	PutAttributes(ctx context.Context, put AttributesPut) (revision uint64, created bool, err error)
}

// DeviceAttributes are a device's attributes; the revision changes with each
// change of them and never comes back.
type DeviceAttributes struct {
	Revision   uint64
	Attributes map[string]string
}

// AttributesPut is one PUT.
type AttributesPut struct {
	Device     string
	Key        [16]byte // equal ones have one effect; zero is unlike any other
	Match      EntityTags
	NoneMatch  EntityTags
	Attributes map[string]string
}

// EntityTags is one precondition: If-Match or If-None-Match.
type EntityTags struct {
	Given     bool
	Any       bool     // "*"
	Revisions []uint64 // of the tags; what never was one of ours is left out
}

func (s *Server) attributeRoutes(mux *http.ServeMux) {
	header := func(name, doc string) *huma.Param {
		return &huma.Param{Name: name, In: "header", Description: doc, Schema: stringSchema()}
	}
	etag := map[string]*huma.Param{"ETag": {Description: "strong; changes with every change of the attributes, those by telemetry's metadata included", Schema: stringSchema()}}
	answer := func(description string) *huma.Response {
		return &huma.Response{Description: description, Headers: etag, Content: map[string]*huma.MediaType{"application/json": {Schema: attributesSchema()}}}
	}
	s.plain(mux, huma.Operation{
		OperationID: "attributes", Method: http.MethodGet, Path: "/api/v1/devices/{id}/attributes", Summary: "Attributes of a device, never stale",
		Parameters: []*huma.Param{pathParam("id", "device"), header("If-None-Match", "304 when the attributes still have this tag")},
		Responses:  map[string]*huma.Response{"200": answer("An object of texts"), "304": {Description: "Unchanged", Headers: etag}},
	}, s.getAttributes)
	s.plain(mux, huma.Operation{
		OperationID: "put-attributes", Method: http.MethodPut, Path: "/api/v1/devices/{id}/attributes", Summary: "Replace all attributes of a device, under a precondition if one is given",
		Description: "Linearizable compare-and-set: with If-Match it happens only if the attributes still have the tag that was read, with If-None-Match: * only if the device is not known yet; 412 otherwise, and nothing has changed. Without a precondition the last PUT wins. A device that is not known is made (201). Every PUT that succeeds gives a new tag. 503 says whether the outcome is unknown; the same PUT with the same Idempotency-Key then hears the first answer.",
		Parameters: []*huma.Param{
			pathParam("id", "device"), header("If-Match", "entity tags, or * for a device that is known"), header("If-None-Match", "* for a device that is not known, or entity tags"),
			header("Idempotency-Key", "makes a repeat harmless, among the last 4,096 puts of the device's shard"),
		},
		RequestBody: &huma.RequestBody{Required: true, Description: "an object of texts: at most 256, 16 KiB together", Content: map[string]*huma.MediaType{"application/json": {Schema: attributesSchema()}}},
		Responses:   map[string]*huma.Response{"200": answer("Replaced"), "201": answer("Replaced, and the device is new")},
	}, s.putAttributes)
}

func attributesSchema() *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: stringSchema(), Examples: []any{map[string]string{"firmware": "1.2.3", "site": "hall-4"}}}
}

func (s *Server) getAttributes(w http.ResponseWriter, r *http.Request, p *params) error {
	id := p.pathDevice()
	known := p.entityTags(r.Header, "If-None-Match", false)
	if err := p.err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), attributesWait)
	defer cancel()
	a, err := s.backend.Attributes.Attributes(ctx, id)
	if err != nil {
		return err
	}
	if known.Given && (known.Any || slices.Contains(known.Revisions, a.Revision)) {
		w.Header().Set("ETag", entityTag(a.Revision))
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	writeAttributes(w, http.StatusOK, a.Revision, a.Attributes)
	return nil
}

func (s *Server) putAttributes(w http.ResponseWriter, r *http.Request, p *params) error {
	put := AttributesPut{Device: p.pathDevice(), Match: p.entityTags(r.Header, "If-Match", true), NoneMatch: p.entityTags(r.Header, "If-None-Match", false)}
	if err := p.err(); err != nil {
		return err
	}
	key, err := idempotencyKey(r.Header)
	if err != nil {
		return err
	}
	if lines, err := bodyIsLines(r.Header); err != nil || lines {
		return newProblem(http.StatusUnsupportedMediaType, "Content-Type %q is not understood: use application/json", r.Header.Get("Content-Type"))
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, attributesBodyBytesMax+1))
	if err != nil {
		return s.bodyError(err, 0)
	}
	if put.Attributes, err = parseAttributes(body); err != nil {
		return err
	}
	if key != "" {
		put.Key = putKey(key, r, body)
	}
	ctx, cancel := context.WithTimeout(r.Context(), attributesWait)
	defer cancel()
	revision, created, err := s.backend.Attributes.PutAttributes(ctx, put)
	if err != nil {
		return putProblem(err, put.Device)
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	writeAttributes(w, status, revision, put.Attributes)
	return nil
}

func writeAttributes(w http.ResponseWriter, status int, revision uint64, attributes map[string]string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", entityTag(revision))
	w.WriteHeader(status)
	if attributes == nil {
		attributes = map[string]string{}
	}
	_ = marshalBody(w, attributes) // the client is gone if this fails
}

// putProblem keeps the words of the backend where they are all that helps.
func putProblem(err error, device string) error {
	switch {
	case errors.Is(err, ErrPrecondition):
		return newProblem(http.StatusPreconditionFailed, "%v: GET /api/v1/devices/%s/attributes and try with the ETag of that answer", err, device)
	case errors.Is(err, ErrInvalid):
		return newProblem(http.StatusUnprocessableEntity, "%v", err)
	}
	return err
}

// putKey tells one PUT from another. A key that is used again for a different
// request is a different PUT.
func putKey(key string, r *http.Request, body []byte) [16]byte {
	h := xxh3.New()
	for _, part := range []string{key, r.URL.Path, strings.Join(r.Header.Values("If-Match"), ","), strings.Join(r.Header.Values("If-None-Match"), ","), string(body)} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part) // a hash takes everything
	}
	return h.Sum128().Bytes()
}

// parseAttributes reads an object of texts.
func parseAttributes(body []byte) (map[string]string, error) {
	switch {
	case len(body) > attributesBodyBytesMax:
		return nil, newProblem(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes: a device has at most %d bytes of attributes", attributesBodyBytesMax, telemetry.AttributeBytesMax)
	case !utf8.Valid(body):
		return nil, invalid("the body is not UTF-8: encode it as UTF-8")
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(body, &raw); err != nil || raw == nil {
		return nil, invalid(`the body is not a JSON object: send the attributes as {"key":"value"}, {} for none`)
	}
	out := make(map[string]string, len(raw))
	for _, k := range slices.Sorted(maps.Keys(raw)) {
		var text *string
		if err := json.Unmarshal(raw[k], &text); err != nil || text == nil {
			return nil, newProblem(http.StatusUnprocessableEntity, "attribute %q is no text: write numbers and booleans in quotes, leave out what is null", k)
		}
		out[k] = *text
	}
	return out, nil
}

// entityTag is the strong tag of a revision.
func entityTag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// entityTags reads a precondition of RFC 9110, section 13.1. strong leaves out
// weak tags, which never match there.
func (p *params) entityTags(h http.Header, name string, strong bool) EntityTags {
	values := h.Values(name)
	if len(values) == 0 {
		return EntityTags{}
	}
	t := EntityTags{Given: true}
	rest := strings.TrimSpace(strings.Join(values, ","))
	if rest == "*" {
		t.Any = true
		return t
	}
	n := 0
	for rest = strings.Trim(rest, " \t,"); rest != ""; rest = strings.TrimLeft(rest, " \t,") {
		n++
		weak := strings.HasPrefix(rest, "W/")
		rest = strings.TrimPrefix(rest, "W/")
		end := strings.IndexByte(strings.TrimPrefix(rest, `"`), '"')
		if rest[:min(1, len(rest))] != `"` || end < 0 || n > tagsMax {
			p.problem(`%s must be * or up to %d entity tags in quotes, as ETag has them: "17"`, name, tagsMax)
			return t
		}
		opaque := rest[1 : 1+end]
		rest = rest[end+2:]
		revision, err := strconv.ParseUint(opaque, 10, 64)
		if err == nil && entityTag(revision) == `"`+opaque+`"` && !(weak && strong) {
			t.Revisions = append(t.Revisions, revision)
		}
	}
	if n == 0 {
		p.problem("%s is empty: leave it out, or give the ETag that was read", name)
	}
	return t
}
