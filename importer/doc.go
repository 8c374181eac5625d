// Package importer sends a file of measurements through the ordinary MQTT path:
// CSV with a mapping of its columns to device, time and sensors, or one message
// of the usual JSON form per line; gzip is recognised by itself.
//
// An Importer owns the input, the connections to the nodes (publishes of one
// device take one connection, so that they keep their order), the state file
// and its lock, one goroutine that reads ahead, and those of package publisher.
//
// Invariants:
//
//   - every line becomes one of: acknowledged, quarantined, refused, bad (with
//     its number and the reason), or empty; a bad line never stops the rest;
//   - the state file (FORMAT.md) names a line up to which all lines have had
//     their fate; it is replaced atomically;
//   - at most unsavedMax messages per connection are sent beyond that line, and
//     none while a message waits for its answer longer than stallMax: both keep
//     what a resumed import sends again within the window in which the cluster
//     recognises repeats of a device (1,024 messages, 120 s);
//   - a resumed import uses the client ids and packet ids of the first one, so
//     that messages without a time are recognised too.
//
// It ends early only when ctx ends (the position is saved, ErrInterrupted), when
// no node can be reached at the start, or when input or state file fail. While
// all nodes are away in between, it waits.
//
// What it does not do: quoted fields with line breaks, other encodings than
// UTF-8, Parquet, deleting what an earlier import brought. A power loss of the
// importing machine may lose the last second of the state file. Progress stands
// in for a registry: an import ends with its command.
//
//	im, err := importer.New(logger, importer.Config{Path: "house.csv", Brokers: addrs, Mapping: importer.Mapping{Device: "meter-{room}", Time: "ts"}})
//	if err != nil { return err }
//	sum, err := im.Run(ctx)
package importer
