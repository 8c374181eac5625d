// Package client asks a Sluice node over HTTP: every route of package api with
// its wire types, pages as iterators, uploads in batches, and event streams that
// resume.
//
// A Client owns nothing but the idle connections of its http.Client and starts
// no goroutine that outlives a call; it is safe for concurrent use. A call that
// may be repeated without harm is repeated on a broken connection and on 429,
// 502, 503 and 504, with Retry-After respected; publishing is one of them,
// because each body goes with an Idempotency-Key. Init, Replay, Drop and
// PublishStream are tried once.
//
// Errors are *Error where a node answered; errors.Is with the sentinels of
// package api tells the cases apart. It takes neither a logger nor a registry:
// what it meets is in the errors it returns.
//
//	c, err := client.New(client.Config{URL: "http://127.0.0.1:8080"})
//	for reading, err := range c.Readings(ctx, client.ReadingsQuery{Device: "pump-7"}) {
//		...
//	}
package client
