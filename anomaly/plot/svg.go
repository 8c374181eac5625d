package plot

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// SVG writes the chart as a picture that any browser shows.
func (c *Chart) SVG(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, c.height(), width, c.height())
	fmt.Fprintf(b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, c.height())
	c.draw(svg{b})
	fmt.Fprintln(b, "</svg>")
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write SVG: %w", err)
	}
	return nil
}

type svg struct{ b *bufio.Writer }

func (s svg) fill(x, y, w, h float64, c shade) {
	fmt.Fprintf(s.b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#%s" fill-opacity="%g"/>`+"\n", x, y, w, h, c.hex, c.alpha)
}

func (s svg) line(xs, ys []float64, c shade) {
	var b strings.Builder
	for i := range xs {
		fmt.Fprintf(&b, "%.1f,%.1f ", xs[i], ys[i])
	}
	fmt.Fprintf(s.b, `<polyline points="%s" fill="none" stroke="#%s" stroke-width="1"/>`+"\n", strings.TrimSpace(b.String()), c.hex)
}

func (s svg) text(x, y float64, t string, end bool) {
	anchor := "start"
	if end {
		anchor = "end"
	}
	fmt.Fprintf(s.b, `<text x="%.1f" y="%.1f" text-anchor="%s">`, x, y, anchor)
	_ = xml.EscapeText(s.b, []byte(t)) // a bufio.Writer keeps its error for Flush
	fmt.Fprintln(s.b, "</text>")
}
