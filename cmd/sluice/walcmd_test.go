package main

import (
	"encoding/hex"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/wal"
)

// TestWALCommandsReadAnEncryptedLogWithItsKey also shows what they say without.
func TestWALCommandsReadAnEncryptedLogWithItsKey(t *testing.T) {
	dir := t.TempDir()
	key, other := wal.Key{1, 2, 3}, wal.Key{4, 5, 6}
	l, err := wal.Open(slog.New(slog.NewTextHandler(io.Discard, nil)), nil, wal.Config{
		Dir: filepath.Join(dir, "wal"), SegmentBytes: 1 << 20, Encrypt: true, Keys: []wal.Key{key},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Group(3).StoreLog(&raft.Log{Index: 1, Term: 1, Data: []byte("temperature")}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	right := temp(t, "keys", "# the new one\n"+hex.EncodeToString(other[:])+"\n# until 2027\n"+hex.EncodeToString(key[:])+"\n")
	wrong := temp(t, "keys", hex.EncodeToString(other[:])+"\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"wal", "verify", dir}, "all good"},
		{[]string{"wal", "stat", dir}, key.ID()},
		{[]string{"wal", "dump", dir, "--data", "--group", "3"}, hex.EncodeToString([]byte("temperature"))},
	} {
		stdout, stderr, code := sluice(t, "", append(c.args, "--key-file", right)...)
		if code != 0 || !strings.Contains(stdout, c.want) {
			t.Errorf("%v: exit code %d, %q is not in\n%s%s", c.args, code, c.want, stdout, stderr)
		}
		for _, more := range [][]string{nil, {"--key-file", wrong}} {
			_, stderr, code := sluice(t, "", append(c.args, more...)...)
			if code != 1 || !strings.Contains(stderr, key.ID()) || !strings.Contains(stderr, "key file") || strings.Count(stderr, "\n") != 1 {
				t.Errorf("%v %v: exit code %d: %s", c.args, more, code, stderr)
			}
		}
	}
}
