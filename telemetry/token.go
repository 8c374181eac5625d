package telemetry

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Write says where in a shard's log something became durable.
type Write struct {
	Shard ShardID
	Index uint64
}

// AddWrite keeps the highest index of every shard, in ascending order of shards.
func AddWrite(list []Write, w Write) []Write {
	i, ok := slices.BinarySearchFunc(list, w.Shard, func(a Write, s ShardID) int { return int(int64(a.Shard) - int64(s)) })
	if ok {
		list[i].Index = max(list[i].Index, w.Index)
		return list
	}
	return slices.Insert(list, i, w)
}

// The layout of a token, base64url without padding of: version (1 byte), for each
// shard in ascending order the distance to the one before it (the first: to 0) and
// the index, both uvarint, and 4 bytes LE of xxhash64 over everything before.
const (
	tokenVersion  = 1
	tokenSumBytes = 4
	// tokenShardsMax is the largest number of shards that a cluster may have.
	tokenShardsMax = 4096
)

// WriteToken is what a client shows to see its own writes; "" without any.
func WriteToken(list []Write) string {
	if len(list) == 0 {
		return ""
	}
	b := []byte{tokenVersion}
	last := ShardID(0)
	for _, w := range list {
		b = binary.AppendUvarint(b, uint64(w.Shard-last))
		b = binary.AppendUvarint(b, w.Index)
		last = w.Shard
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(xxhash.Sum64(b)))
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseWriteToken is the inverse of WriteToken. The checksum is against mistakes.
func ParseWriteToken(s string) ([]Write, error) {
	bad := fmt.Errorf("write token %.40q was not given by this cluster: pass it as it came", s)
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 1+tokenSumBytes || b[0] != tokenVersion {
		return nil, bad
	}
	body, sum := b[:len(b)-tokenSumBytes], b[len(b)-tokenSumBytes:]
	if binary.LittleEndian.Uint32(sum) != uint32(xxhash.Sum64(body)) {
		return nil, bad
	}
	var list []Write
	shard := uint64(0)
	for body = body[1:]; len(body) > 0; {
		step, n := binary.Uvarint(body)
		if n <= 0 {
			return nil, bad
		}
		index, k := binary.Uvarint(body[n:])
		if shard += step; k <= 0 || shard >= tokenShardsMax || len(list) > 0 && step == 0 {
			return nil, bad
		}
		list = append(list, Write{Shard: ShardID(shard), Index: index})
		body = body[n+k:]
	}
	if len(list) == 0 {
		return nil, bad
	}
	return list, nil
}
