package telemetry

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
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

// The layout of a token, base64url without padding of: version (1 byte), 4 bytes LE
// of xxhash64 of the cluster's id, for each shard in ascending order the distance to
// the one before it (the first: to 0) and the index, both uvarint, and 4 bytes LE of
// xxhash64 over everything before.
const (
	tokenVersion      = 2
	tokenClusterBytes = 4
	tokenSumBytes     = 4
	// tokenShardsMax is the largest number of shards that a cluster may have.
	tokenShardsMax = 4096
)

// ErrOtherCluster answers for a token that a different cluster gave.
var ErrOtherCluster = errors.New("write token was given by another cluster")

// WriteToken is what a client of a cluster shows to see its own writes; "" without any.
func WriteToken(cluster string, list []Write) string {
	if len(list) == 0 {
		return ""
	}
	b := binary.LittleEndian.AppendUint32([]byte{tokenVersion}, tokenCluster(cluster))
	last := ShardID(0)
	for _, w := range list {
		b = binary.AppendUvarint(b, uint64(w.Shard-last))
		b = binary.AppendUvarint(b, w.Index)
		last = w.Shard
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(xxhash.Sum64(b)))
	return base64.RawURLEncoding.EncodeToString(b)
}

func tokenCluster(id string) uint32 { return uint32(xxhash.Sum64String(id)) }

// ParseWriteToken is the inverse of WriteToken; ErrOtherCluster when cluster is not
// the one that gave it. The checksum is against mistakes.
func ParseWriteToken(cluster, s string) ([]Write, error) {
	bad := fmt.Errorf("%.40q is no write token of this version: pass one as it came, or leave it out", s)
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 1+tokenClusterBytes+tokenSumBytes || b[0] != tokenVersion {
		return nil, bad
	}
	body, sum := b[:len(b)-tokenSumBytes], b[len(b)-tokenSumBytes:]
	if binary.LittleEndian.Uint32(sum) != uint32(xxhash.Sum64(body)) {
		return nil, bad
	}
	if binary.LittleEndian.Uint32(body[1:]) != tokenCluster(cluster) {
		return nil, fmt.Errorf("%w: ask the cluster that acknowledged the write, or leave the token out (this one is %q)", ErrOtherCluster, cluster)
	}
	var list []Write
	shard := uint64(0)
	for body = body[1+tokenClusterBytes:]; len(body) > 0; {
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
