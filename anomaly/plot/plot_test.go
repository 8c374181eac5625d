package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"math"
	"testing"
)

func chart(rows int) *Chart {
	p := Panel{Name: `a<b & "c"`}
	for i := range rows {
		v := math.Sin(float64(i) / 50)
		if i%97 == 0 {
			v = math.NaN()
		}
		p.Times = append(p.Times, int64(i)*1e6)
		p.Values = append(p.Values, v)
		p.Low, p.High = append(p.Low, v-0.2), append(p.High, v+0.2)
	}
	return &Chart{Title: "t", Panels: []Panel{p, p}, Alerts: []Span{{From: 1e8, To: 2e8}}}
}

func TestSVGIsWellFormed(t *testing.T) {
	for _, rows := range []int{0, 1, 2, 50_000} {
		var b bytes.Buffer
		if err := chart(rows).SVG(&b); err != nil {
			t.Fatal(err)
		}
		if b.Len() > 1<<20 {
			t.Errorf("%d rows take %d bytes", rows, b.Len())
		}
		d := xml.NewDecoder(&b)
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%d rows: %v", rows, err)
			}
		}
	}
}

func TestPNGShowsSeriesBandAndAlert(t *testing.T) {
	var b bytes.Buffer
	c := chart(1000)
	if err := c.PNG(&b); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	if s := img.Bounds().Size(); s.X != width || s.Y != c.height() {
		t.Errorf("size %v", s)
	}
	seen := map[[3]uint32]bool{}
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			r, g, b, _ := img.At(x, y).RGBA()
			seen[[3]uint32{r >> 8, g >> 8, b >> 8}] = true
		}
	}
	if !seen[[3]uint32{0x1f, 0x4e, 0x79}] || !seen[[3]uint32{0xd6, 0x27, 0x28}] || len(seen) < 5 {
		t.Errorf("series or alert is not there: %d colours", len(seen))
	}
}

// spans is a canvas that notes where alerts are drawn.
type spans []float64

func (s *spans) fill(x, _, w, _ float64, c shade) {
	if c == alarm {
		*s = append(*s, x, x+w)
	}
}
func (*spans) line([]float64, []float64, shade)    {}
func (*spans) text(float64, float64, string, bool) {}

// An alert of a device that is not drawn may lie before or behind everything that is.
func TestAlertsAreDrawnWithinTheFrame(t *testing.T) {
	c := chart(1000)
	c.Alerts = append(c.Alerts, Span{From: -5e8, To: -4e8}, Span{From: 2e9, To: 3e9}, Span{From: -1e8, To: 1e7})
	var got spans
	c.draw(&got)
	if len(got) != 8 { // two alerts in two panels
		t.Errorf("drawn at %v, want two alerts", got)
	}
	for _, x := range got {
		if x < left || x > left+plotWidth {
			t.Errorf("an alert is drawn at %v", x)
		}
	}
}
