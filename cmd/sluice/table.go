package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// table prints aligned columns. Rows beyond tableAhead widen the columns from
// there on, so that any number of rows can be printed as they come.
type table struct {
	w      io.Writer
	right  []bool // columns of numbers
	widths []int
	rows   [][]string
	err    error
}

const tableAhead = 1000

// newTable takes the column titles; one that begins with > is aligned to the
// right.
func newTable(w io.Writer, titles ...string) *table {
	t := &table{w: w, right: make([]bool, len(titles)), widths: make([]int, len(titles))}
	for i, s := range titles {
		if strings.HasPrefix(s, ">") {
			t.right[i], titles[i] = true, s[1:]
		}
	}
	t.row(titles...)
	return t
}

func (t *table) row(cells ...string) {
	t.rows = append(t.rows, cells)
	if len(t.rows) >= tableAhead {
		t.flush()
	}
}

// flush prints what waits. Errors of the writer are kept: the reader is gone.
func (t *table) flush() error {
	for _, r := range t.rows {
		for i, c := range r {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, r := range t.rows {
		line := ""
		for i, c := range r {
			pad := strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(c))
			if t.right[i] {
				c = pad + c
			} else {
				c += pad
			}
			if i > 0 {
				line += "  "
			}
			line += c
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	t.rows = t.rows[:0]
	if _, err := io.WriteString(t.w, b.String()); err != nil && t.err == nil {
		t.err = fmt.Errorf("write output: %w", err)
	}
	return t.err
}

// size writes bytes in binary units with three digits or so.
func size(n int64) string {
	f := float64(n)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB"} {
		if f < 1000 {
			if unit == "B" {
				return fmt.Sprintf("%d B", n)
			}
			return fmt.Sprintf("%.3g %s", f, unit)
		}
		f /= 1024
	}
	return fmt.Sprintf("%.4g TiB", f)
}
