package telemetry

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestWriteTokensComeBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		want := map[ShardID]uint64{}
		var list []Write
		for range rapid.IntRange(1, 20).Draw(rt, "writes") {
			w := Write{Shard: ShardID(rapid.IntRange(0, tokenShardsMax-1).Draw(rt, "shard")), Index: rapid.Uint64().Draw(rt, "index")}
			list = AddWrite(list, w)
			want[w.Shard] = max(want[w.Shard], w.Index)
		}
		s := WriteToken(list)
		got, err := ParseWriteToken(s)
		if err != nil || !slices.Equal(got, list) || len(list) != len(want) {
			rt.Fatalf("%v comes back as %v, %v", list, got, err)
		}
		for _, w := range list {
			if want[w.Shard] != w.Index {
				rt.Fatalf("shard %d has index %d, want %d", w.Shard, w.Index, want[w.Shard])
			}
		}
		at := rapid.IntRange(0, len(s)-1).Draw(rt, "at")
		spoilt := []byte(s)
		spoilt[at] = "ABab01"[(slices.Index([]byte("ABab01"), spoilt[at])+1)%6]
		if got, err := ParseWriteToken(string(spoilt)); err == nil {
			rt.Fatalf("spoilt token is read as %v", got)
		}
	})
	for _, s := range []string{"", "A", "AQ", "AQAAAAA", "nonsense!"} {
		if got, err := ParseWriteToken(s); err == nil {
			t.Errorf("%q is read as %v", s, got)
		}
	}
}
