package bench

import (
	"fmt"
	"io"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// spanOf reads a histogram of microseconds.
func spanOf(h *hdrhistogram.Histogram) Span {
	ms := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }
	return Span{P50: ms(50), P99: ms(99), Most: float64(h.Max()) / 1000, Samples: h.TotalCount()}
}

func (s *Span) line(w io.Writer, name string) {
	fmt.Fprintf(w, "%-44s %8.1fms %8.1fms %8.1fms %8d\n", name, s.P50, s.P99, s.Most, s.Samples)
}
