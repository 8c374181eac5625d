package plot

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"
	"strconv"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
)

// PNG writes the chart as pixels.
func (c *Chart) PNG(w io.Writer) error {
	img := image.NewRGBA(image.Rect(0, 0, width, c.height()))
	draw.Draw(img, img.Bounds(), image.White, image.Point{}, draw.Src)
	c.draw(raster{img})
	if err := png.Encode(w, img); err != nil {
		return fmt.Errorf("write PNG: %w", err)
	}
	return nil
}

type raster struct{ img *image.RGBA }

func (s shade) colour() color.Color {
	v, err := strconv.ParseUint(s.hex, 16, 32)
	if err != nil {
		return color.Black
	}
	return color.NRGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), uint8(255 * s.alpha)}
}

func (r raster) fill(x, y, w, h float64, c shade) {
	at := image.Rect(int(x), int(y), int(x+math.Max(w, 1)), int(y+math.Max(h, 1)))
	draw.Draw(r.img, at, image.NewUniform(c.colour()), image.Point{}, draw.Over)
}

// line is drawn pixel by pixel along its longer side.
func (r raster) line(xs, ys []float64, c shade) {
	ink := c.colour()
	for i := 1; i < len(xs); i++ {
		dx, dy := xs[i]-xs[i-1], ys[i]-ys[i-1]
		steps := int(math.Max(math.Abs(dx), math.Abs(dy))) + 1
		for k := range steps + 1 {
			f := float64(k) / float64(steps)
			r.img.Set(int(xs[i-1]+f*dx), int(ys[i-1]+f*dy), ink)
		}
	}
}

func (r raster) text(x, y float64, t string, end bool) {
	d := font.Drawer{Dst: r.img, Src: image.Black, Face: basicfont.Face7x13}
	if end {
		x -= float64(d.MeasureString(t).Ceil())
	}
	d.Dot = fixed.P(int(x), int(y))
	d.DrawString(t)
}
