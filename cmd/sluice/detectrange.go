package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/anomaly"
	"github.com/sluice-iot/sluice/shard"
)

// parseRanges reads NAME=LO:HI, by the name of the sensor. A name may hold an =.
func parseRanges(list []string) (map[string]shard.Range, error) {
	out := make(map[string]shard.Range, len(list))
	for _, text := range list {
		i := strings.LastIndexByte(text, '=')
		if i < 1 {
			return nil, fmt.Errorf("range is %q: want NAME=LO:HI, for example temperature=-40:125", text)
		}
		r := shard.Range{Sensor: text[:i]}
		lo, hi, two := strings.Cut(text[i+1:], ":")
		var errs [2]error
		r.Min, errs[0] = strconv.ParseFloat(strings.TrimSpace(lo), 64)
		r.Max, errs[1] = strconv.ParseFloat(strings.TrimSpace(hi), 64)
		switch {
		case !two || errs[0] != nil || errs[1] != nil:
			return nil, fmt.Errorf("range is %q: %q is not two numbers LO:HI, for example %s=-40:125", text, text[i+1:], r.Sensor)
		case !(r.Min < r.Max) || math.IsInf(r.Min, 0) || math.IsInf(r.Max, 0):
			return nil, fmt.Errorf("range is %q: LO must be below HI, both finite", text)
		}
		if _, twice := out[r.Sensor]; twice {
			return nil, fmt.Errorf("range of %s is given twice: use it once", r.Sensor)
		}
		out[r.Sensor] = r
	}
	return out, nil
}

// setRanges gives the file's columns their ranges.
func (f *detection) setRanges(ranges map[string]shard.Range) error {
	f.ranges = make([]*shard.Range, len(f.sensors))
	for name, r := range ranges {
		i := slices.Index(f.sensors, name)
		if i < 0 {
			return fmt.Errorf("range of %s: no such column of values, there are %s: check --range and --value", name, strings.Join(f.sensors, ", "))
		}
		f.ranges[i] = &r
	}
	return nil
}

// exceed tells the detector that the latest sensor of a row is out of its range.
func (f *detection) exceed(row *anomaly.Row, k int, x float64) {
	if r := f.ranges[k]; r != nil && (x < r.Min || x > r.Max) {
		row.Exceed(row.Len()-1, r.Min, r.Max)
	}
}

// band is what was expected of the sensor with the largest share: its physical
// range, where it is that which was left.
func (f *detection) band(r *detectRow) (low, high float64) {
	x := r.values[r.top]
	if limit := f.ranges[r.top]; limit != nil && (x < limit.Min || x > limit.Max) {
		return limit.Min, limit.Max
	}
	return r.verdicts[r.top].Low, r.verdicts[r.top].High
}
