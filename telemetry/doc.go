// Package telemetry is the vocabulary that every other package shares: ids of
// nodes, zones, shards and devices, the message a device publishes, the row it
// becomes, and the outcome its publisher is told. The grammar of topics
// (ParseTopic) and of payloads (Scanner; PAYLOAD.md says what a payload means)
// lives here too; the columnar block that carries messages through the log is
// the sub-package block.
//
// It is a leaf: it imports nothing of Sluice, owns no goroutine, no file and no
// socket. Every type is a plain value except Scanner, which owns bounded caches
// and serves one goroutine at a time.
//
// Time is int64 microseconds since the Unix epoch everywhere (PostgreSQL's
// resolution); a field that holds another unit says so in its name.
//
//	topic := telemetry.ParseTopic("devices/sensor-001/telemetry")
//	scanner := telemetry.NewScanner()
//	messages, err := scanner.Parse(topic.ID, payload, time.Now().UnixMicro(), nil)
//	for i := range messages {
//		shard := telemetry.ShardOf(messages[i].Device, shards)
//	}
package telemetry
