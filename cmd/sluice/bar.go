package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// bar shows how far something is: one line that redraws itself on a terminal,
// a plain line now and then elsewhere.
type bar struct {
	f        *os.File
	terminal bool
	began    time.Time

	mu    sync.Mutex // over what follows
	shown bool
	rate  rate
	first int64 // bytes at the first drawing: where a resumed run began
	drawn bool
}

const (
	barEvery   = 200 * time.Millisecond
	plainEvery = 10 * time.Second
	barWidth   = 24
)

func newBar(f *os.File) *bar {
	b := &bar{f: f, began: time.Now()}
	b.rate.add(b.began, 0)
	if st, err := f.Stat(); err == nil {
		b.terminal = st.Mode()&os.ModeCharDevice != 0
	}
	return b
}

func (b *bar) every() time.Duration {
	if b.terminal {
		return barEvery
	}
	return plainEvery
}

// draw shows progress: done of size bytes (size 0 is not known), and units so
// far, whose rate is shown.
func (b *bar) draw(now time.Time, done, size, units int64, note string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.drawn {
		b.drawn, b.first = true, done
	}
	text := b.text(now, done, size, units, note)
	if !b.terminal {
		fmt.Fprintln(b.f, text)
		return
	}
	b.shown = true
	fmt.Fprint(b.f, "\r\033[K"+text)
}

func (b *bar) text(now time.Time, done, size, units int64, note string) string {
	var t strings.Builder
	if size > 0 {
		share := min(1, float64(done)/float64(size))
		if b.terminal {
			full := int(share * barWidth)
			t.WriteString("[" + strings.Repeat("#", full) + strings.Repeat("-", barWidth-full) + "] ")
		}
		fmt.Fprintf(&t, "%3.0f %%  ", 100*share)
	}
	fmt.Fprintf(&t, "%s/s  %s", count(int64(b.rate.add(now, units))), note)
	if left, ok := b.left(now, done, size); ok {
		fmt.Fprintf(&t, "  %v left", left)
	}
	return t.String()
}

// left estimates by the bytes since the first drawing.
func (b *bar) left(now time.Time, done, size int64) (time.Duration, bool) {
	if size <= 0 || done <= b.first || done >= size {
		return 0, false
	}
	per := now.Sub(b.began).Seconds() / float64(done-b.first)
	return time.Duration(per * float64(size-done) * float64(time.Second)).Round(time.Second), true
}

// clear makes room for another line.
func (b *bar) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.terminal && b.shown {
		fmt.Fprint(b.f, "\r\033[K")
		b.shown = false
	}
}

// rate is the growth per second over the last rateSpan.
type rate struct {
	at    []time.Time
	units []int64
}

const rateSpan = 3 * time.Second

func (r *rate) add(now time.Time, units int64) float64 {
	r.at, r.units = append(r.at, now), append(r.units, units)
	for len(r.at) > 2 && now.Sub(r.at[1]) > rateSpan {
		r.at, r.units = r.at[1:], r.units[1:]
	}
	span := now.Sub(r.at[0]).Seconds()
	if span <= 0 {
		return 0
	}
	return float64(units-r.units[0]) / span
}

// count writes a number with separators: 1,234,567.
func count[T ~int | ~int64 | ~uint64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}
