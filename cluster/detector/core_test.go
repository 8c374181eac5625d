package detector

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func parseSignal(s string) (Signal, error) {
	for i := range signals {
		if i.String() == s {
			return i, nil
		}
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

// script plays one case and returns the first difference.
type script struct {
	core *core
	zero time.Time
	now  time.Time
	told []string // by ticks
}

func (s *script) tick(now time.Time) {
	_, events := s.core.tick(now)
	for _, e := range events {
		s.told = append(s.told, e.Peer+" "+map[bool]string{true: "down", false: "up"}[e.Down])
	}
}

func (s *script) advance(to time.Time, paused bool) {
	for !paused && s.now.Add(s.core.cfg.Tick).Before(to) {
		s.now = s.now.Add(s.core.cfg.Tick)
		s.tick(s.now)
	}
	s.now = to
}

func (s *script) line(line string) error {
	line, want, _ := strings.Cut(line, " => ")
	f := strings.Fields(line)
	ms, err := strconv.Atoi(f[0])
	if err != nil {
		return err
	}
	to := s.zero.Add(time.Duration(ms) * time.Millisecond)
	paused := f[1] == "paused"
	s.advance(to, paused)
	if paused && len(f) == 2 {
		s.tick(to)
		return nil
	}
	told := strings.Join(s.told, ", ")
	s.told = nil
	if f[1] == "tick" && told == want {
		return nil
	}
	if told != "" {
		return fmt.Errorf("%q: ticks tell %q", line, told)
	}
	if paused {
		f = f[1:]
	}
	if f[1] == "idle" {
		return nil
	}
	signal, err := parseSignal(f[2])
	if err != nil {
		return err
	}
	e, ok := s.core.observe(to, f[1], signal)
	got := ""
	if ok {
		got = map[bool]string{true: "down", false: "up"}[e.Down]
	}
	if got != want || (ok && e.Peer != f[1]) {
		return fmt.Errorf("%q gives %q (%+v), want %q", line, got, e, want)
	}
	if s.core.isDown(f[1]) != (want == "down") && want != "" {
		return fmt.Errorf("%q: peer is down: %v", line, s.core.isDown(f[1]))
	}
	return nil
}

func TestScriptsOfFailures(t *testing.T) {
	b, err := os.ReadFile("testdata/scripts.txt")
	if err != nil {
		t.Fatal(err)
	}
	var s *script
	name := ""
	for n, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(line, "case "):
			zero := time.Unix(1000, 0)
			s, name = &script{core: newCore(DefaultConfig(), zero), zero: zero, now: zero}, line[5:]
		default:
			if err := s.line(line); err != nil {
				t.Errorf("line %d (%s): %v", n+1, name, err)
			}
		}
	}
}

func TestDownAndUpAlternateWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := DefaultConfig()
		cfg.PeersMax = 3
		now := time.Unix(1000, 0)
		c := newCore(cfg, now)
		down := map[string]bool{}
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "ms")) * time.Millisecond)
			if rapid.Bool().Draw(t, "tick") {
				_, events := c.tick(now)
				for _, e := range events {
					if e.Down == down[e.Peer] {
						t.Fatalf("tick gives %+v, down before: %v", e, down[e.Peer])
					}
					down[e.Peer] = e.Down
				}
				continue
			}
			peer := rapid.SampledFrom([]string{"n1", "n2", "n3", "n4"}).Draw(t, "peer")
			s := Signal(rapid.IntRange(0, int(signals)-1).Draw(t, "signal"))
			e, ok := c.observe(now, peer, s)
			if ok && (e.Peer != peer || e.Down == down[peer]) {
				t.Fatalf("%s: %v gives %+v, down before: %v", peer, s, e, down[peer])
			}
			if ok {
				down[peer] = e.Down
			}
			if len(c.peers) > cfg.PeersMax {
				t.Fatalf("%d peers remembered", len(c.peers))
			}
		}
	})
}
