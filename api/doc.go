// Package api serves Sluice over HTTP. Any node answers for the whole cluster:
// the package knows nothing of shards or leaders, it asks the small interfaces
// of backend.go and turns their answers into JSON, CSV, server-sent events and
// RFC 9457 problem details.
//
// It owns the routes and their wire types (wire.go), the limits that keep one
// client from taking the node (Config), the cursors of paged lists (FORMAT.md),
// and the answers kept for Idempotency-Key. It starts no goroutine of its own
// except those of net/http; Serve returns after all of them.
//
// Invariants:
//
//   - 200 to POST /api/v1/telemetry means that every message of the body is
//     durable (applied, a duplicate, or in quarantine) or named in "errors"; one
//     outcome that is not known makes the whole answer 503.
//   - Every answer that is not a success is a problem (application/problem+json)
//     whose detail names the remedy, unknown routes and methods included.
//   - A list walked with "next" neither repeats nor skips a reading that was
//     there when the walk began.
//   - No reader makes the node wait: a connection without progress for
//     Config.ProgressTimeout is cut, a stream that falls behind is ended, and
//     memory per request has a named bound.
//
// What it does not do: authentication (Config.Middleware is the seam for it),
// TLS, parsing of telemetry, and any decision about the cluster.
//
//	srv, err := api.New(logger, reg, api.Config{Node: "n0"}, api.Backend{Ingest: in, Cluster: c, Reader: r, Quarantine: q, Events: hub})
//	if err != nil {
//		return err
//	}
//	return srv.Serve(ctx, listener) // until ctx ends, then graceful
package api
