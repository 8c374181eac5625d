package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/sluice-iot/sluice/anomaly/plot"
)

// plotName refuses a name before anything is computed for it.
func plotName(name string) error {
	switch strings.ToLower(filepath.Ext(name)) {
	case "", ".svg", ".png":
		if name != "" && filepath.Ext(name) == "" {
			return fmt.Errorf("plot is %s: name a file that ends in .svg or .png", name)
		}
		return nil
	}
	return fmt.Errorf("plot is %s: only .svg and .png can be drawn", name)
}

// plot draws the first device's sensors, or a panel per device and sensor while
// there is room.
func (f *detection) plot(name string) error {
	c := plot.Chart{Title: fmt.Sprintf("%s readings, %s anomalies", count(f.readings), count(len(f.found)))}
	last := int64(0)
	if n := len(f.order); n > 0 {
		last = f.rows[f.order[n-1]].time
	}
	for i := range f.found {
		a := &f.found[i]
		s := plot.Span{From: a.Opened, To: a.Closed}
		if a.Closed == 0 {
			s.To = last
		}
		c.Alerts = append(c.Alerts, s)
	}
	for dev := range f.devices {
		for k := range f.sensors {
			if p := f.panel(dev, k); len(p.Times) > 0 && len(c.Panels) < plot.PanelsMax {
				c.Panels = append(c.Panels, p)
			}
		}
	}
	w, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	if strings.EqualFold(filepath.Ext(name), ".png") {
		err = c.PNG(w)
	} else {
		err = c.SVG(w)
	}
	return errors.Join(err, w.Close())
}

func (f *detection) panel(dev, k int) plot.Panel {
	p := plot.Panel{Name: f.sensors[k]}
	if len(f.devices) > 1 {
		p.Name = f.devices[dev] + " " + p.Name
	}
	for _, i := range f.order {
		r := &f.rows[i]
		if r.device != dev || k >= len(r.values) || r.values[k] != r.values[k] {
			continue
		}
		low, high := r.verdicts[k].Low, r.verdicts[k].High
		if r.verdicts[k].Warmup {
			low, high = math.NaN(), math.NaN()
		}
		p.Times = append(p.Times, r.time)
		p.Values = append(p.Values, r.values[k])
		p.Low, p.High = append(p.Low, low), append(p.High, high)
	}
	return p
}
