package plot

import (
	"math"
	"strconv"
	"time"
)

// Chart is a drawing: panels below one another with one axis of time.
type Chart struct {
	Title  string
	Panels []Panel
	Alerts []Span
}

// Panel is one series. The slices are as long as Times; NaN is no value.
type Panel struct {
	Name              string
	Times             []int64 // microseconds, ascending
	Values, Low, High []float64
}

// Span is an alert.
type Span struct{ From, To int64 }

// PanelsMax bounds a drawing to what a person looks at.
const PanelsMax = 12

const (
	width       = 1200
	left, right = 70, 20
	top, bottom = 34, 30
	panelHeight = 150
	panelGap    = 22
	plotWidth   = width - left - right
)

// canvas draws in pixels, y downwards.
type canvas interface {
	fill(x, y, w, h float64, c shade)
	line(xs, ys []float64, c shade)
	text(x, y float64, s string, end bool)
}

// shade is a colour of the drawing.
type shade struct {
	hex   string
	alpha float64
}

var (
	ink   = shade{"1f4e79", 1}
	band  = shade{"8fb8de", 0.45}
	alarm = shade{"d62728", 0.18}
	edge  = shade{"d62728", 1}
	frame = shade{"999999", 1}
)

func (c *Chart) height() int {
	return top + len(c.shown())*(panelHeight+panelGap) + bottom
}

func (c *Chart) shown() []Panel { return c.Panels[:min(len(c.Panels), PanelsMax)] }

// draw puts the chart on a canvas.
func (c *Chart) draw(g canvas) {
	from, to := c.span()
	g.text(left, 20, c.Title, false)
	for i := range c.shown() {
		p := &c.Panels[i]
		y := float64(top + i*(panelHeight+panelGap) + 14)
		c.panel(g, p, y, from, to)
	}
	for i := range 5 {
		f := float64(i) / 4
		at := time.UnixMicro(from + int64(f*float64(to-from))).UTC().Format("2006-01-02 15:04")
		g.text(left+f*plotWidth, float64(c.height()-10), at, i > 0)
	}
}

func (c *Chart) span() (from, to int64) {
	from, to = math.MaxInt64, math.MinInt64
	for i := range c.shown() {
		if t := c.Panels[i].Times; len(t) > 0 {
			from, to = min(from, t[0]), max(to, t[len(t)-1])
		}
	}
	if from > to {
		return 0, 1
	}
	return from, max(to, from+1)
}

// column is what one pixel column shows.
type column struct {
	low, high, bandLow, bandHigh float64
	any, band                    bool
}

func (c *Chart) panel(g canvas, p *Panel, y float64, from, to int64) {
	columns := make([]column, plotWidth+1)
	for i, t := range p.Times {
		columns[int(float64(t-from)/float64(to-from)*plotWidth)].add(p, i)
	}
	lo, hi := limits(columns)
	at := func(v float64) float64 {
		f := (v - lo) / (hi - lo)
		return y + panelHeight*(1-math.Min(math.Max(f, 0), 1))
	}
	for _, a := range c.Alerts {
		if a.To < from || a.From > to { // of a device that has no panel
			continue
		}
		x0 := left + plotWidth*float64(max(a.From, from)-from)/float64(to-from)
		x1 := left + plotWidth*float64(min(a.To, to)-from)/float64(to-from)
		g.fill(x0, y, math.Max(x1-x0, 1), panelHeight, alarm)
		g.fill(x0, y, 1, panelHeight, edge)
	}
	var xs, ys []float64
	for x := range columns {
		k := &columns[x]
		if k.band {
			g.fill(left+float64(x), at(k.bandHigh), 1, math.Max(at(k.bandLow)-at(k.bandHigh), 1), band)
		}
		if !k.any {
			continue
		}
		xs, ys = append(xs, left+float64(x), left+float64(x)), append(ys, at(k.low), at(k.high))
	}
	g.line(xs, ys, ink)
	g.line([]float64{left, left + plotWidth, left + plotWidth, left, left}, []float64{y, y, y + panelHeight, y + panelHeight, y}, frame)
	g.text(left, y-4, p.Name, false)
	g.text(left-4, y+10, brief(hi), true)
	g.text(left-4, y+panelHeight, brief(lo), true)
}

func brief(v float64) string { return strconv.FormatFloat(v, 'g', 5, 64) }

func (k *column) add(p *Panel, i int) {
	if v := p.Values[i]; v-v == 0 {
		if !k.any {
			k.low, k.high, k.any = v, v, true
		}
		k.low, k.high = math.Min(k.low, v), math.Max(k.high, v)
	}
	if l, h := p.Low[i], p.High[i]; l-l == 0 && h-h == 0 {
		if !k.band {
			k.bandLow, k.bandHigh, k.band = l, h, true
		}
		k.bandLow, k.bandHigh = math.Min(k.bandLow, l), math.Max(k.bandHigh, h)
	}
}

// limits are those of the values, with a margin; the band may be cut off.
func limits(columns []column) (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for i := range columns {
		if columns[i].any {
			lo, hi = math.Min(lo, columns[i].low), math.Max(hi, columns[i].high)
		}
	}
	if lo > hi {
		return 0, 1
	}
	margin := 0.05*(hi-lo) + 1e-9*math.Abs(hi) + 1e-12
	return lo - margin, hi + margin
}
