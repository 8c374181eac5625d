package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-iot/sluice/telemetry"
)

// controlBodyBytesMax bounds the bodies of operator's acts; a list of 1,000
// node ids fits.
const controlBodyBytesMax = 64 << 10

// output is what huma makes an answer of.
type output[B any] struct {
	Status int
	Body   B
}

// simple is the body of /healthz and /readyz.
type simple struct {
	Status string           `json:"status" example:"ok"`
	Node   telemetry.NodeID `json:"node,omitempty"`
}

// drained is the body of POST and DELETE /api/v1/nodes/{id}/drain.
type drained struct {
	Node  telemetry.NodeID `json:"node"`
	State string           `json:"state" enum:"draining,alive" doc:"what the node is to be now"`
}

type evicted struct {
	Node telemetry.NodeID `json:"node"`
}

// routes registers everything and freezes the OpenAPI document.
func (s *Server) routes(mux *http.ServeMux) error {
	format := huma.Format{Marshal: marshalBody, Unmarshal: json.Unmarshal}
	// Not huma.DefaultConfig: it would add $schema members to every body, a
	// documentation page that loads scripts from elsewhere, and a document that
	// is built on first use without a lock.
	s.huma = humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: "Sluice", Version: s.cfg.Version, Description: "Any node answers for the whole cluster."},
		},
		Formats:       map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{humaProblems},
	})
	s.nodeRoutes()
	s.clusterRoutes()
	s.listRoutes()
	s.databaseRoutes()
	s.plainRoutes(mux)

	doc, err := json.Marshal(s.huma.OpenAPI())
	if err != nil {
		return fmt.Errorf("write the openapi document: %w", err)
	}
	s.openapi = doc
	return nil
}

// marshalBody writes what huma answers; lists go element by element.
func marshalBody(w io.Writer, v any) error {
	if l, ok := v.(interface{ writeJSON(io.Writer) error }); ok {
		return l.writeJSON(w)
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// operation completes the description of a route.
func operation(op huma.Operation) huma.Operation {
	op.SkipValidateParams = true // params does it, with better words
	op.MaxBodyBytes = controlBodyBytesMax
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.Responses["default"] = errorResponse()
	return op
}

// register adds a JSON route without a body.
func register[B any](s *Server, op huma.Operation, handle func(context.Context, *params) (B, error)) {
	op = operation(op)
	status := op.DefaultStatus
	huma.Register(s.huma, op, func(ctx context.Context, p *params) (*output[B], error) {
		if err := p.err(); err != nil {
			return nil, err
		}
		body, err := handle(ctx, p)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		return &output[B]{Status: status, Body: body}, nil
	})
}

func (s *Server) nodeRoutes() {
	register(s, huma.Operation{OperationID: "health", Method: http.MethodGet, Path: "/healthz", Summary: "Is the process alive", DefaultStatus: http.StatusOK},
		func(context.Context, *params) (simple, error) { return simple{Status: "ok", Node: s.cfg.Node}, nil })
	register(s, huma.Operation{OperationID: "ready", Method: http.MethodGet, Path: "/readyz", Summary: "Can the node take publishes", DefaultStatus: http.StatusOK},
		func(ctx context.Context, _ *params) (simple, error) {
			err := s.backend.Cluster.Ready(ctx)
			if s.isClosing() {
				err = &UnavailableError{Reason: "the node is shutting down"}
			}
			if err != nil {
				return simple{}, unavailableProblem(err, 0)
			}
			return simple{Status: "ready", Node: s.cfg.Node}, nil
		})
}

func (s *Server) clusterRoutes() {
	register(s, huma.Operation{OperationID: "status", Method: http.MethodGet, Path: "/api/v1/status", Summary: "Nodes and shards", DefaultStatus: http.StatusOK},
		func(ctx context.Context, _ *params) (Status, error) {
			status, err := s.backend.Cluster.Status(ctx)
			status.Nodes, status.Shards = notNil(status.Nodes), notNil(status.Shards)
			for i := range status.Shards {
				status.Shards[i].Replicas = notNil(status.Shards[i].Replicas)
			}
			return status, err
		})
	register(s, huma.Operation{OperationID: "ledger", Method: http.MethodGet, Path: "/api/v1/ledger", Summary: "What became of all messages", DefaultStatus: http.StatusOK},
		func(ctx context.Context, _ *params) (Ledger, error) {
			ledger, err := s.backend.Cluster.Ledger(ctx)
			ledger.Shards = notNil(ledger.Shards)
			return ledger, err
		})
	register(s, huma.Operation{
		OperationID: "drain", Method: http.MethodPost, Path: "/api/v1/nodes/{id}/drain", Summary: "Answer what is in flight, let the clients go and hand over the leaderships of a node",
		Parameters: []*huma.Param{pathParam("id", "node")}, DefaultStatus: http.StatusAccepted,
	}, func(ctx context.Context, p *params) (drained, error) {
		node := telemetry.NodeID(p.path("id"))
		return drained{Node: node, State: NodeDraining}, s.backend.Cluster.Drain(ctx, node)
	})
	register(s, huma.Operation{
		OperationID: "end-drain", Method: http.MethodDelete, Path: "/api/v1/nodes/{id}/drain", Summary: "Use a node that is draining, or drained, again",
		Parameters: []*huma.Param{pathParam("id", "node")}, DefaultStatus: http.StatusAccepted,
	}, func(ctx context.Context, p *params) (drained, error) {
		node := telemetry.NodeID(p.path("id"))
		return drained{Node: node, State: NodeAlive}, s.backend.Cluster.EndDrain(ctx, node)
	})

	register(s, huma.Operation{
		OperationID: "evict", Method: http.MethodPost, Path: "/api/v1/nodes/{id}/evict", Summary: "Remove a node that is gone, or drained, for ever; its id is free for another data directory",
		Parameters: []*huma.Param{pathParam("id", "node")}, DefaultStatus: http.StatusAccepted,
	}, func(ctx context.Context, p *params) (evicted, error) {
		node := telemetry.NodeID(p.path("id"))
		return evicted{Node: node}, s.backend.Cluster.Evict(ctx, node)
	})

	type initInput struct {
		Body InitRequest
	}
	huma.Register(s.huma, operation(huma.Operation{
		OperationID: "init", Method: http.MethodPost, Path: "/api/v1/cluster/init", Summary: "Bootstrap the cluster, once in its life",
		DefaultStatus: http.StatusOK,
	}), func(ctx context.Context, in *initInput) (*output[Status], error) {
		if err := s.backend.Cluster.Init(ctx, in.Body); err != nil {
			return nil, s.problem(ctx, err)
		}
		status, err := s.backend.Cluster.Status(ctx)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		status.Nodes, status.Shards = notNil(status.Nodes), notNil(status.Shards)
		return &output[Status]{Status: http.StatusOK, Body: status}, nil
	})
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// plain adds a route that huma only documents.
func (s *Server) plain(mux *http.ServeMux, op huma.Operation, handle func(http.ResponseWriter, *http.Request, *params) error) {
	op = operation(op)
	s.huma.OpenAPI().AddOperation(&op)
	mux.HandleFunc(op.Method+" "+op.Path, func(w http.ResponseWriter, r *http.Request) {
		p := params{header: r.Header.Get}
		p.open(r.URL, r.PathValue, &op)
		if err := handle(w, r, &p); err != nil {
			s.fail(w, r, err)
		}
	})
}

func (s *Server) plainRoutes(mux *http.ServeMux) {
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.backend.Gatherer, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(s.openapi) // the client is gone if this fails
	})
	s.telemetryRoutes(mux)
	s.readingRoutes(mux)
	s.attributeRoutes(mux)
	s.watchRoutes(mux)
	s.streamRoutes(mux)
}

// jsonResponse describes the answer of a plain route.
func jsonResponse[B any](s *Server, description string) *huma.Response {
	t := reflect.TypeFor[B]()
	schema := s.huma.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
}
