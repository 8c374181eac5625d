package telemetry

import "github.com/cespare/xxhash/v2"

// NodeID names a node for as long as its data directory lives, "n0" for example.
type NodeID string

// Zone is a failure domain: an availability zone, a rack, a room.
type Zone string

// ShardID counts shards from 0 to the cluster's shard count - 1.
type ShardID uint32

// DeviceIDBytesMax bounds a device id; ids are keys in every index we keep.
const DeviceIDBytesMax = 128

// ShardOf places a key (a device id, or a topic without a device) on one of
// count shards: the jump consistent hash of Lamping and Veach ("A Fast, Minimal
// Memory, Consistent Hash Algorithm", 2014) over the key's xxhash64, so that
// growing the count moves only the share of keys that must move. count > 0.
func ShardOf(key string, count uint32) ShardID {
	h := xxhash.Sum64String(key)
	var b, j int64 = -1, 0
	for j < int64(count) {
		b = j
		h = h*2862933555777941757 + 1
		j = int64(float64(b+1) * (float64(int64(1)<<31) / float64((h>>33)+1)))
	}
	return ShardID(b)
}

// ValidDeviceID reports whether id matches [A-Za-z0-9][A-Za-z0-9._:@=~-]{0,127}.
func ValidDeviceID(id string) bool {
	if len(id) == 0 || len(id) > DeviceIDBytesMax || !alphanumeric(id[0]) {
		return false
	}
	for i := 1; i < len(id); i++ {
		if !alphanumeric(id[i]) {
			switch id[i] {
			case '.', '_', ':', '@', '=', '~', '-':
			default:
				return false
			}
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c-'0' <= 9 || (c|0x20)-'a' <= 25
}
