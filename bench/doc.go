// Package bench measures Sluice from outside: load generators that speak MQTT
// over real sockets to real node processes, scenarios that run them, and tables
// that say with which command a figure was made.
//
// It is a black box: it imports nothing of the ingest path, only the wire
// vocabulary of the public API and the local cluster. Every figure is taken
// with the load generator on the same machine, so CPU per message, read from
// the nodes' processes, is the steadier figure and messages per second the
// noisier one.
//
//	res, err := bench.Run(ctx, bench.Load{Addrs: addrs, Connections: 50, Window: 16, Duration: 10 * time.Second})
//	fmt.Println(res.Rate(), res.Latency.ValueAtQuantile(99))
package bench
