package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/sluice-iot/sluice/internal/vfs"
)

// smallLog makes a log of a few segments and returns its disk, as Close left it
// and as a kill without the last marker would.
func smallLog(t *testing.T, config func(vfs.FS) Config) (closed, killed *vfs.Mem, before, after model) {
	t.Helper()
	fs := vfs.NewMem()
	cfg := config(fs)
	cfg.SegmentBytes = 8 << 10
	l := mustOpen(t, cfg)
	m := model{}
	do := func(s step) {
		before = m.clone()
		if err := s.do(l); err != nil {
			t.Fatal(err)
		}
		m.expect(s, s.count())
	}
	for i := uint64(1); i < 40; i += 4 {
		do(step{Kind: "store", Group: uint32(i % 3), From: m.group(uint32(i%3)).last + 1, To: m.group(uint32(i%3)).last + 4, Term: i, Size: 172})
	}
	do(step{Kind: "set", Group: 1, From: 1, To: 7})
	do(step{Kind: "truncate", Group: 1, From: m.group(1).last - 1})
	// The last commit: two groups at once would do as well, two entries are enough.
	last := m.group(2).last
	s := step{Kind: "store", Group: 2, From: last + 1, To: last + 2, Term: 50, Size: 320}
	head := l.w.head.name
	var crash atomic.Pointer[vfs.Mem]
	before = m.clone()
	fs.SetHook(func(op vfs.Op) error {
		if op.Kind == vfs.OpWrite && strings.HasPrefix(op.Name, "wal/"+head) && op.Bytes <= int(l.w.head.sealBytes()) {
			crash.CompareAndSwap(nil, fs.Clone()) // the marker is about to be written
		}
		return nil
	})
	do(s)
	for crash.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	fs.SetHook(nil)
	if l.w.head.name != head {
		t.Fatal("the last commit opened another segment; choose other sizes")
	}
	mustClose(t, l)
	return fs, crash.Load(), before, m
}

// outcome is what reading a damaged log gives.
func outcome(fs vfs.FS, want ...model) (detected bool, err error) {
	get, p, err := replayed(fs, "wal")
	defer p.close()
	var c *CorruptError
	if errors.As(err, &c) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	var errs []error
	for _, m := range want {
		err := m.agrees(get)
		if err == nil {
			return false, nil
		}
		errs = append(errs, err)
	}
	return false, errors.Join(errs...)
}

func TestEveryFlippedByteIsDetectedOrHarmless(t *testing.T) {
	inBothForms(t, everyFlippedByteIsDetectedOrHarmless)
}

func everyFlippedByteIsDetectedOrHarmless(t *testing.T, config func(vfs.FS) Config) {
	closed, killed, before, after := smallLog(t, config)
	names, _ := closed.List("wal")
	stride := 1
	if strings.HasSuffix(t.Name(), "encrypted") {
		stride = 3 // the bytes mean the same
	}
	if raceEnabled || testing.Short() {
		stride = 41
	}
	for _, c := range []struct {
		name string
		disk *vfs.Mem
		ok   []model
	}{
		{"after a clean close", closed, []model{after}},
		// Without the marker, rot in the last commit is a torn write: the residual of DESIGN D2.
		{"after a kill", killed, []model{after, before, partly(before, after, 2, 1)}},
	} {
		detected, harmless := 0, 0
		for _, name := range names {
			path := "wal/" + name
			used := usedBytes(c.disk, name)
			for off := int64(0); off < 8<<10; off += int64(stride) {
				if off > used+256 {
					off += 36 // zeroes that nobody will read
				}
				if off >= 8<<10 {
					break
				}
				flip := func(b []byte) []byte { b[off] ^= 1 << (off % 8); return b }
				if c.disk.Mutate(path, flip) != nil {
					continue // the lock file
				}
				found, err := outcome(c.disk, c.ok...)
				if err != nil {
					t.Fatalf("%s: byte %d of %s flipped: %v", c.name, off, name, err)
				}
				if found {
					detected++
				} else {
					harmless++
				}
				_ = c.disk.Mutate(path, flip)
			}
		}
		t.Logf("%s: %d flips detected, %d harmless", c.name, detected, harmless)
		if detected == 0 {
			t.Error("nothing was detected")
		}
	}
}

// usedBytes is where the records of a segment end.
func usedBytes(fs vfs.FS, name string) int64 {
	s, err := openSegment(fs, "wal", name, true, testKeys)
	if err != nil {
		return 0
	}
	t, _ := s.scan(nil)
	return t.off
}

// partly is before with the first n of the new entries of a group.
func partly(before, after model, group uint32, n uint64) model {
	m := before.clone()
	g := m.group(group)
	for i := g.last + 1; i <= before.group(group).last+n; i++ {
		g.terms[i] = after.group(group).terms[i]
		g.last = i
	}
	return m
}

func TestEveryTruncationIsDetected(t *testing.T) { inBothForms(t, everyTruncationIsDetected) }

func everyTruncationIsDetected(t *testing.T, config func(vfs.FS) Config) {
	closed, _, _, _ := smallLog(t, config)
	names, _ := closed.List("wal")
	stride := 1
	if raceEnabled || testing.Short() {
		stride = 41
	}
	for _, name := range names {
		path := "wal/" + name
		used := int(usedBytes(closed, name))
		for size := 0; size < 8<<10; size += stride {
			if size > used+256 {
				size = min(size+100, 8<<10-1)
			}
			disk := closed.Clone()
			if disk.Mutate(path, func(b []byte) []byte { return b[:size] }) != nil {
				continue
			}
			if found, err := outcome(disk); !found {
				t.Fatalf("%s cut to %d bytes: %v", name, size, err)
			}
		}
	}
}

func TestEveryLostSegmentIsDetected(t *testing.T) { inBothForms(t, everyLostSegmentIsDetected) }

func everyLostSegmentIsDetected(t *testing.T, config func(vfs.FS) Config) {
	closed, _, _, after := smallLog(t, config)
	names, _ := closed.List("wal")
	lost := 0
	for i, name := range names {
		disk := closed.Clone()
		if err := disk.Remove("wal/" + name); err != nil {
			continue
		}
		found, err := outcome(disk, after)
		if err != nil {
			t.Errorf("without %s: %v", name, err)
		}
		if found {
			lost++
		} else if i < len(names)-reserveSegments-1 {
			t.Errorf("%s of %v is missing and nobody noticed", name, names)
		}
	}
	if lost == 0 {
		t.Error("nothing was detected")
	}
}

func TestZeroedPageIsDetected(t *testing.T) { inBothForms(t, zeroedPageIsDetected) }

func zeroedPageIsDetected(t *testing.T, config func(vfs.FS) Config) {
	closed, _, _, after := smallLog(t, config)
	names, _ := closed.List("wal")
	for _, name := range names {
		for _, size := range []int{512, 4096} {
			for page := 0; page < 8<<10; page += size {
				disk := closed.Clone()
				_ = disk.Mutate("wal/"+name, func(b []byte) []byte { clear(b[page:min(len(b), page+size)]); return b })
				if found, err := outcome(disk, after); err != nil {
					t.Errorf("%d bytes at %d of %s zeroed, detected: %v: %v", size, page, name, found, err)
				}
			}
		}
	}
}

func TestVerifyNamesEveryDamagedSegment(t *testing.T) { inBothForms(t, verifyNamesEveryDamagedSegment) }

func verifyNamesEveryDamagedSegment(t *testing.T, config func(vfs.FS) Config) {
	closed, _, _, _ := smallLog(t, config)
	rep, err := verify(closed, "wal", testKeys...)
	if err != nil || rep.Entries == 0 || len(rep.Groups) != 3 {
		t.Fatalf("verify of a good log: %+v, %v", rep, err)
	}
	for _, name := range []string{segmentName(1), segmentName(2)} {
		_ = closed.Mutate("wal/"+name, func(b []byte) []byte { b[headerBytes+100] ^= 1; return b })
	}
	rep, err = verify(closed, ".", testKeys...) // the node's directory finds the folder
	var c *CorruptError
	if !errors.As(err, &c) || len(rep.Damage) != 2 {
		t.Fatalf("verify: %v, damage %v, want two segments", err, rep.Damage)
	}
	if c.Segment != segmentName(1) || !strings.Contains(c.Error(), "as a new incarnation") {
		t.Errorf("damage %v does not name the segment and the remedy", c)
	}
	if _, err := Open(quiet, nil, config(closed)); !errors.As(err, &c) {
		t.Errorf("open of a damaged log: %v", err)
	}
	var out strings.Builder
	if err := dump(closed, &out, "wal", Filter{}, testKeys...); err != nil || !strings.Contains(out.String(), "checksum") {
		t.Errorf("dump %v:\n%s", err, out.String())
	}
	if _, err := verify(vfs.NewMem(), "empty"); err == nil {
		t.Error("verify of nothing succeeds")
	}
}

func TestReaderAndScrubberReportRot(t *testing.T) { inBothForms(t, readerAndScrubberReportRot) }

func readerAndScrubberReportRot(t *testing.T, config func(vfs.FS) Config) {
	fs := vfs.NewMem()
	cfg := config(fs)
	cfg.CacheBytes = 1
	damage := make(chan *CorruptError, 8)
	cfg.OnDamage = func(c *CorruptError) { damage <- c }
	l := mustOpen(t, cfg)
	g := l.Group(1)
	mustStore(t, g, entries(1, 1, 200, 1, 200))
	rot := func(i uint64) string {
		loc := g.index.get(i)
		name := segmentName(uint64(loc.segment))
		files, _ := fs.List("wal")
		if !strings.Contains(strings.Join(files, " "), name) {
			t.Fatalf("%s is not among %v", name, files)
		}
		_ = fs.Mutate("wal/"+name, func(b []byte) []byte { b[loc.offset+60] ^= 1; return b })
		return name
	}
	name := rot(1)
	var e raft.Log
	var c *CorruptError
	if err := g.GetLog(1, &e); !errors.As(err, &c) || c.Segment != name {
		t.Errorf("get of a rotten entry: %v", err)
	}
	if got := <-damage; got.Segment != name {
		t.Errorf("reported %v, want %s", got, name)
	}
	name = rot(60)
	for _, s := range l.janitor.sealed() {
		for tl := (tail{off: headerBytes}); !l.scrub.chunk(s, &tl); {
		}
	}
	if got := <-damage; got.Segment != name {
		t.Errorf("scrubber reported %v, want %s", got, name)
	}
	if len(damage) != 0 {
		t.Errorf("more damage than there is: %v", <-damage)
	}
}

func TestTornTailIsCutAndStaysCut(t *testing.T) { inBothForms(t, tornTailIsCutAndStaysCut) }

// tornTailIsCutAndStaysCut leaves sectors of an unfinished commit behind and
// checks that they never come back.
func tornTailIsCutAndStaysCut(t *testing.T, config func(vfs.FS) Config) {
	for lost := range 6 {
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			fs := vfs.NewMem()
			l := mustOpen(t, config(fs))
			mustStore(t, l.Group(1), entries(1, 1, 3, 1, 500))
			mustClose(t, l)
			l = mustOpen(t, config(fs))
			off, name := l.w.off, "wal/"+l.w.head.name
			var torn *vfs.Mem
			fs.SetHook(func(op vfs.Op) error {
				if op.Kind == vfs.OpSync && torn == nil && strings.HasPrefix(op.Name, name) {
					torn = fs.Clone() // written, not synced
				}
				return nil
			})
			mustStore(t, l.Group(1), entries(1, 4, 9, 1, 500))
			fs.SetHook(nil)
			start := (off/512 + 1 + int64(lost)) * 512 // a sector of the commit that did not make it
			_ = torn.Mutate(name, func(b []byte) []byte { clear(b[start : start+512]); return b })
			l = mustOpen(t, config(torn))
			g := l.Group(1)
			last, _ := g.LastIndex()
			if last < 3 || last > 8 {
				t.Fatalf("last entry is %d", last)
			}
			wantEntries(t, g, 1, last, 1, 500)
			mustStore(t, g, entries(1, last+1, last+1, 7, 10))
			for range 2 {
				l = mustOpen(t, config(torn.CrashClone(nil)))
				if again, _ := l.Group(1).LastIndex(); again != last+1 {
					t.Fatalf("after the cut the log ends at %d, want %d", again, last+1)
				}
			}
		})
	}
}

// TestSegmentOfAnotherVersionIsNoDamage: a node must not throw away a log that
// another version of the program can read.
func TestSegmentOfAnotherVersionIsNoDamage(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, memConfig(fs))
	mustStore(t, l.Group(1), entries(1, 1, 3, 1, 10))
	mustClose(t, l)
	_ = fs.Mutate("wal/"+segmentName(1), func(b []byte) []byte {
		b[8] = formatVersion - 1
		binary.LittleEndian.PutUint32(b[headerUsed-4:], crc32.Checksum(b[:headerUsed-4], castagnoli))
		return b
	})
	var c *CorruptError
	if _, err := Open(quiet, nil, memConfig(fs)); err == nil || errors.As(err, &c) || !strings.Contains(err.Error(), "format version 1, this program reads 2") {
		t.Errorf("a log of another version: %v", err)
	}
}
