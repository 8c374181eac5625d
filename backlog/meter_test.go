package backlog

import (
	"math"
	"testing"
	"time"
)

func meter(t *testing.T, cfg Config) *Meter {
	t.Helper()
	m, err := New(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var t0 = time.Date(2026, 1, 23, 15, 0, 0, 0, time.UTC)

// TestLevelsFollowTheFillAndDoNotFlap walks up and down.
func TestLevelsFollowTheFillAndDoNotFlap(t *testing.T) {
	m := meter(t, Config{BytesMax: 1000, Window: time.Minute})
	for i, c := range []struct {
		log  int64
		want Level
	}{{100, OK}, {799, OK}, {800, Alarm}, {790, Alarm}, {899, Alarm}, {900, Refuse}, {881, Refuse}, {879, Alarm}, {895, Alarm}, {1200, Refuse}, {779, OK}, {785, OK}} {
		s := m.Step(t0.Add(time.Duration(i)*time.Second), Sample{Log: c.log, Free: 1 << 40})
		if s.Level != c.want || m.Refusing() != (c.want == Refuse) {
			t.Errorf("step %d: %d of 1000 bytes give %s, want %s", i, c.log, s.Level, c.want)
		}
	}
}

// TestFullFileSystemCountsWhateverTheLimit: other files take the room too.
func TestFullFileSystemCountsWhateverTheLimit(t *testing.T) {
	for name, c := range map[string]struct {
		max, log, free, budget int64
		want                   Level
	}{
		"no limit":              {0, 100, 900, 1000, OK},
		"no limit, disk filled": {0, 100, 10, 110, Refuse},
		"limit":                 {200, 100, 900, 200, OK},
		"limit, disk filled":    {200, 100, 20, 120, Alarm},
		"nothing is known":      {0, 100, -1, 0, OK},
		"limit, disk not known": {110, 100, -1, 110, Refuse},
	} {
		m := meter(t, Config{BytesMax: c.max, Window: time.Minute})
		if s := m.Step(t0, Sample{Log: c.log, Free: c.free}); s.Budget != c.budget || s.Level != c.want {
			t.Errorf("%s: budget %d, level %s, want %d, %s", name, s.Budget, s.Level, c.budget, c.want)
		}
	}
}

func TestHoursLeftAtThePresentRate(t *testing.T) {
	m := meter(t, Config{BytesMax: 100 << 30, Window: time.Minute})
	var s State
	for i := range 120 { // 10 MiB/s
		s = m.Step(t0.Add(time.Duration(i)*time.Second), Sample{Log: 10 << 30, Free: 1 << 50, Waiting: int64(i) * 10 << 20})
	}
	if want := float64(80<<30) / float64(10<<20) / 3600; math.Abs(s.HoursLeft-want) > want/50 {
		t.Errorf("%.3f hours left, want %.3f", s.HoursLeft, want)
	}
	for i := range 120 { // a flush per second keeps it where it is
		s = m.Step(t0.Add(time.Duration(120+i)*time.Second), Sample{Log: 10 << 30, Free: 1 << 50, Waiting: int64(i%2) << 20})
	}
	if s.HoursLeft >= 0 && s.HoursLeft < 1000 {
		t.Errorf("a backlog that stays where it is leaves %.1f hours", s.HoursLeft)
	}
	if s := meter(t, Config{Window: time.Minute}).Step(t0, Sample{Waiting: 1 << 40}); s.HoursLeft >= 0 {
		t.Errorf("one sample gives a rate: %+v", s)
	}
}

func TestFreeSpaceOfThisFileSystem(t *testing.T) {
	if n := Free(t.TempDir()); n <= 0 {
		t.Errorf("%d bytes free", n)
	}
	if n := Free("/no such directory"); n >= 0 {
		t.Errorf("%d bytes free in a directory that does not exist", n)
	}
}
