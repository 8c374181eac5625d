package wal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/vfs"
)

func TestEncryptedLogShowsNothingOnDisk(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, sealedConfig(fs))
	secret := bytes.Repeat([]byte("temperature 21.5"), 8)
	g := l.Group(1)
	for i := uint64(1); i <= 300; i++ { // over several segments, so that checkpoints and relocations are there too
		mustStore(t, g, []*raft.Log{{Index: i, Term: 1, Data: secret}})
	}
	if err := g.Set([]byte("LastVoteCand"), secret); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	names, _ := fs.List("wal")
	if len(names) < 3 {
		t.Fatalf("only %v", names)
	}
	for _, name := range names {
		_ = fs.Mutate("wal/"+name, func(b []byte) []byte {
			if bytes.Contains(b, []byte("temperature")) || bytes.Contains(b, []byte("LastVote")) || bytes.Contains(b, testKeys[0][:4]) {
				t.Errorf("%s shows what it should hide", name)
			}
			return b
		})
	}
	l = mustOpen(t, sealedConfig(fs.CrashClone(nil)))
	var e raft.Log
	if err := l.Group(1).GetLog(300, &e); err != nil || !bytes.Equal(e.Data, secret) {
		t.Errorf("entry 300 is %q, %v", e.Data, err)
	}
}

// TestNoncesNeverRepeat collects the nonces of all records of all lives of a log
// whose unfinished end is cut and written again and again at the same places.
func TestNoncesNeverRepeat(t *testing.T) {
	fs := vfs.NewMem()
	type use struct{ key, nonce string }
	seen := map[use]bool{}
	records := 0
	for life := range uint64(30) {
		l := mustOpen(t, sealedConfig(fs))
		last, _ := l.Group(1).LastIndex()
		mustStore(t, l.Group(1), entries(1, last+1, last+5, life, 100))
		s := l.w.head
		t1, err := s.scan(func(off int64, _ []byte, r *record) error {
			var b [nonceBytes]byte
			if _, err := s.f.ReadAt(b[:], off+int64(r.headerSize())); err != nil {
				return err
			}
			seen[use{string(s.wrapped.data[:]), string(b[:])}] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		records = max(records, t1.records)
		// The power goes and takes the last commit with it: the next life writes there again.
		off := int64(l.Group(1).index.get(last + 1).offset)
		name := s.name
		fs = fs.Clone()
		_ = fs.Mutate("wal/"+name, func(b []byte) []byte { clear(b[off:]); return b })
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) < 30*5 {
		t.Errorf("%d distinct nonces in 30 lives that wrote at least 5 records each", len(seen))
	}
}

// TestChangedRecordIsDamage changes the ciphertext and repairs the outer checksum,
// as only somebody who means it does.
func TestChangedRecordIsDamage(t *testing.T) {
	fs := vfs.NewMem()
	cfg := sealedConfig(fs)
	cfg.CacheBytes = 1
	l := mustOpen(t, cfg)
	mustStore(t, l.Group(1), entries(1, 1, 3, 1, 100))
	loc, head := l.Group(1).index.get(2), l.w.head
	header := int(loc.size) - sealOverhead - 100
	mustClose(t, l)
	for _, at := range []int{recordKindStart + 1, recordFixedBytes, recordFixedBytes + 2, header, header + nonceBytes + 3, int(loc.size) - 1} {
		disk := fs.Clone()
		_ = disk.Mutate("wal/"+head.name, func(b []byte) []byte {
			raw := b[loc.offset : loc.offset+loc.size]
			raw[at] ^= 1
			sealRecord(raw[:len(raw):len(raw)], 0, head.key)
			return b
		})
		var c *CorruptError
		if _, err := Open(quiet, nil, sealedConfig(disk)); !errors.As(err, &c) || !errors.Is(err, errSealBroken) {
			t.Errorf("byte %d of the record changed: %v", at, err)
		}
	}
}

func TestKeyErrorsNameTheRemedy(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, sealedConfig(fs))
	mustStore(t, l.Group(1), entries(1, 1, 3, 1, 100))
	mustClose(t, l)
	for name, keys := range map[string][]Key{"none": nil, "another": {{9}}} {
		cfg := memConfig(fs)
		cfg.Keys = keys
		_, err := Open(quiet, nil, cfg)
		_, verr := verify(fs, "wal", keys...)
		derr := dump(fs, &strings.Builder{}, "wal", Filter{}, keys...)
		for what, err := range map[string]error{"open": err, "verify": verr, "dump": derr} {
			if !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), testKeys[0].ID()) || !strings.Contains(err.Error(), "key file") {
				t.Errorf("%s with %s key: %v", what, name, err)
			}
			var c *CorruptError
			if errors.As(err, &c) {
				t.Errorf("%s with %s key calls it damage: %v", what, name, err)
			}
		}
	}
	cfg := memConfig(fs)
	cfg.Encrypt = true
	if _, err := Open(quiet, nil, cfg); err == nil || !strings.Contains(err.Error(), "operator key") {
		t.Errorf("encryption without a key: %v", err)
	}
	rep, err := verify(fs, "wal", testKeys...)
	if err != nil || rep.Segments[0].Key != testKeys[0].ID() {
		t.Errorf("verify with the key: %+v, %v", rep.Segments, err)
	}
}

// TestKeysRotateAndEncryptionComesAndGoes changes the configuration from start to
// start, with a crash at every operation of each start.
func TestKeysRotateAndEncryptionComesAndGoes(t *testing.T) {
	fs := vfs.NewMem()
	configs := []struct {
		encrypt bool
		keys    []Key
		want    string
	}{
		{false, nil, ""},
		{true, testKeys[:1], testKeys[0].ID()},
		{true, []Key{testKeys[1], testKeys[0]}, testKeys[1].ID()}, // the new one first
		{false, testKeys[:2], ""},
		{true, []Key{testKeys[2], testKeys[1], testKeys[0]}, testKeys[2].ID()},
	}
	next := uint64(1)
	for i, c := range configs {
		var points []*vfs.Mem
		fs.SetHook(func(op vfs.Op) error {
			if op.Kind != vfs.OpRead {
				points = append(points, fs.CrashClone(nil))
			}
			return nil
		})
		cfg := memConfig(fs)
		cfg.Encrypt, cfg.Keys = c.encrypt, c.keys
		cfg.CacheBytes = 1
		l, err := Open(quiet, nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		g := l.Group(1)
		mustStore(t, g, entries(1, next, next, 1, 200))
		if got := l.w.head.keyID(); got != c.want {
			t.Errorf("start %d writes under key %q, want %q", i, got, c.want)
		}
		mustClose(t, l)
		fs.SetHook(nil)
		for _, p := range points { // by this configuration, which has all keys
			cfg.FS = p
			l := mustOpen(t, cfg)
			first, last := l.Group(1).Retained()
			if last != next && last != next-1 {
				t.Fatalf("start %d: entries %d..%d after a crash, want %d or %d", i, first, last, next-1, next)
			}
			mustStore(t, l.Group(1), entries(1, last+1, last+1, 1, 200))
			wantEntries(t, l.Group(1), 1, last+1, 1, 200)
			mustClose(t, l)
		}
		next++
	}
	rep, err := verify(fs, "wal", testKeys...)
	if err != nil || rep.Entries != int64(next-1) {
		t.Fatalf("%d entries, %v", rep.Entries, err)
	}
	under := map[string]bool{}
	for _, s := range rep.Segments {
		under[s.Key] = true
	}
	if len(under) != 4 { // in the clear, and three keys
		t.Errorf("segments are under %v", under)
	}
}

// TestRelocationKeepsTheFirstChecksum moves entries from an encrypted segment
// under an old key to one under a new key, and on.
func TestRelocationKeepsTheFirstChecksum(t *testing.T) {
	fs := vfs.NewMem()
	cfg := sealedConfig(fs)
	cfg.CacheBytes = 1
	for life := range uint64(3) {
		l := mustOpen(t, cfg)
		// One entry of group 1 in each of many segments that are dead otherwise.
		churned := l.Group(2)
		from, _ := churned.LastIndex()
		kept, _ := l.Group(1).LastIndex()
		for i := range uint64(12) {
			mustStore(t, l.Group(1), entries(1, kept+i+1, kept+i+1, 1, 300))
			mustStore(t, churned, entries(2, from+i*80+1, from+i*80+80, 1, 200))
		}
		churned.SetFloor(from + 12*80 - 1)
		if err := churned.DeleteRange(from, from+12*80-1); err != nil {
			t.Fatal(err)
		}
		if err := l.janitor.maintain(); err != nil {
			t.Fatal(err)
		}
		wantEntries(t, l.Group(1), 1, kept+12, 1, 300)
		mustClose(t, l)
		group := uint32(1)
		var out strings.Builder
		if _, err := verify(fs, "wal", testKeys...); err != nil {
			t.Fatalf("life %d: %v", life, err)
		}
		if err := dump(fs, &out, "wal", Filter{Group: &group}, testKeys...); err != nil || !strings.Contains(out.String(), "relocated 1 ") {
			t.Fatalf("life %d: entry 1 was not relocated, %v:\n%s", life, err, out.String())
		}
		cfg.Keys = []Key{testKeys[(life+1)%3], testKeys[life%3], testKeys[0], testKeys[1], testKeys[2]}
	}
}

func TestParseKeys(t *testing.T) {
	a, b := testKeys[0], testKeys[1]
	text := "# keys of the log, the first one encrypts\n" + base64.StdEncoding.EncodeToString(a[:]) + "  # 2026-11\n\n" + hex.EncodeToString(b[:]) + "\r\n"
	keys, err := ParseKeys(text)
	if err != nil || len(keys) != 2 || keys[0] != a || keys[1] != b {
		t.Errorf("parsed %v, %v", keys, err)
	}
	if keys, err = ParseKeys(hex.EncodeToString(b[:]) + "," + hex.EncodeToString(a[:])); err != nil || len(keys) != 2 || keys[0] != b {
		t.Errorf("parsed %v, %v", keys, err)
	}
	for _, bad := range []string{"secret", "c2hvcnQ=", hex.EncodeToString(a[:]) + "00", hex.EncodeToString(a[:]) + "\n" + hex.EncodeToString(a[:])} {
		if _, err := ParseKeys(bad); err == nil || strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if keys, err := ParseKeys("\n# none\n"); err != nil || len(keys) != 0 {
		t.Errorf("no keys: %v, %v", keys, err)
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	k := Key(bytes.Repeat([]byte{0xab}, keyBytes))
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "key", k)
	j, _ := json.Marshal(Config{Keys: []Key{k}}.Keys)
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%+v %#v %s %q", k, k, k, k), string(j), out.String()} {
		if strings.Contains(strings.ToLower(s), "abab") || strings.Contains(s, "171") {
			t.Errorf("a key prints itself: %s", s)
		}
	}
}
