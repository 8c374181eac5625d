package telemetry

import (
	"errors"
	"slices"
	"strings"
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
		s := WriteToken("c1", list)
		got, err := ParseWriteToken("c1", s)
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
		if got, err := ParseWriteToken("c1", string(spoilt)); err == nil {
			rt.Fatalf("spoilt token is read as %v", got)
		}
	})
	for _, s := range []string{"", "A", "AQ", "AQAAAAA", "AgAAAAAAAAAA", "nonsense!"} {
		if got, err := ParseWriteToken("c1", s); err == nil {
			t.Errorf("%q is read as %v", s, got)
		}
	}
}

func TestATokenOfAnotherClusterSaysSo(t *testing.T) {
	s := WriteToken("c1", []Write{{Shard: 1, Index: 7}})
	got, err := ParseWriteToken("c2", s)
	if !errors.Is(err, ErrOtherCluster) || !strings.Contains(err.Error(), "ask the cluster that acknowledged") {
		t.Errorf("read as %v, %v", got, err)
	}
	if _, err := ParseWriteToken("c1", s[:len(s)-2]); err == nil || errors.Is(err, ErrOtherCluster) {
		t.Errorf("a token that is cut off: %v", err)
	}
}
