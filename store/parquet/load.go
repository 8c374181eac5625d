package parquet

import (
	"context"
	"fmt"
	"sort"

	"github.com/sluice-iot/sluice/telemetry"
)

// loadBatch decodes a whole file into the batch it was made of (Term is 0).
func (d *decoder) loadBatch(ctx context.Context, s *segmentFile) (_ *telemetry.Batch, err error) {
	defer guard(&err)
	m := s.meta
	b := &telemetry.Batch{Namespace: m.Namespace, Shard: m.Shard, From: m.From, To: m.To, Messages: m.Messages}
	dicts := make([]groupDicts, len(s.groups))
	for i := range s.groups {
		var err error
		if dicts[i], err = d.groupDicts(s, &s.groups[i]); err != nil {
			return nil, fmt.Errorf("row group %d: %w", i, err)
		}
	}
	b.Devices = union(dicts, func(g *groupDicts) []string { return g.devices })
	b.Sensors = union(dicts, func(g *groupDicts) []string { return g.sensors })
	for i := range s.groups {
		devices, sensors := renumber(dicts[i].devices, b.Devices), renumber(dicts[i].sensors, b.Sensors)
		for page := range s.groups[i].pages {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if err := d.loadPage(s, &s.groups[i], page, &dicts[i], devices, sensors, b); err != nil {
				return nil, fmt.Errorf("row group %d page %d: %w", i, page, err)
			}
		}
	}
	if m.ExtraBytes > 0 {
		raw, err := s.read(m.ExtraOffset, m.ExtraBytes, &d.raw)
		if err != nil {
			return nil, err
		}
		if err := d.decompress(raw, m.ExtraRawBytes); err != nil {
			return nil, fmt.Errorf("device updates: %w", err)
		}
		if err := unmarshalExtra(d.plain, b); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// groupDicts are the dictionaries of one row group.
type groupDicts struct {
	devices, sensors []string
	numberDicts
}

// numberDicts are the dictionaries of the columns that no condition looks at.
type numberDicts struct {
	values    []float64 // nil: the column is plain
	scores    []float32 // nil: the column is plain
	qualities []telemetry.Quality
}

func (d *decoder) groupDicts(s *segmentFile, g *rowGroup) (t groupDicts, err error) {
	if t.devices, err = d.strings(s, g, colDevice); err != nil {
		return t, fmt.Errorf("devices: %w", err)
	}
	if t.sensors, err = d.strings(s, g, colSensor); err != nil {
		return t, fmt.Errorf("sensors: %w", err)
	}
	t.numberDicts, err = d.numberDicts(s, g)
	return t, err
}

func (d *decoder) numberDicts(s *segmentFile, g *rowGroup) (t numberDicts, err error) {
	if t.values, err = realDictionary[float64](d, s, g, colValue); err != nil {
		return t, fmt.Errorf("values: %w", err)
	}
	if t.scores, err = realDictionary[float32](d, s, g, colScore); err != nil {
		return t, fmt.Errorf("scores: %w", err)
	}
	if t.qualities, err = d.qualityDictionary(s, g); err != nil {
		return t, fmt.Errorf("qualities: %w", err)
	}
	return t, nil
}

func (d *decoder) loadPage(s *segmentFile, g *rowGroup, page int, t *groupDicts, devices, sensors []uint32, b *telemetry.Batch) error {
	var err error
	if d.times, err = d.timestamps(s, g, colTime, page, d.times); err != nil {
		return fmt.Errorf("time: %w", err)
	}
	if d.devices, err = d.dictNumbers(s, g, colDevice, page, len(devices), d.devices); err != nil {
		return fmt.Errorf("device_id: %w", err)
	}
	if d.sensors, err = d.dictNumbers(s, g, colSensor, page, len(sensors), d.sensors); err != nil {
		return fmt.Errorf("sensor: %w", err)
	}
	if err := d.numberColumns(s, g, page, &t.numberDicts); err != nil {
		return err
	}
	for i, at := range d.times {
		b.Rows = append(b.Rows, telemetry.Row{
			Time: at, Received: d.received[i], Value: d.values[i], Score: d.scores[i], Quality: d.qualities[i],
			Device: devices[d.devices[i]], Sensor: sensors[d.sensors[i]],
		})
	}
	return nil
}

// numberColumns reads received, value, score and quality of a page.
func (d *decoder) numberColumns(s *segmentFile, g *rowGroup, page int, t *numberDicts) (err error) {
	if d.received, err = d.timestamps(s, g, colReceived, page, d.received); err != nil {
		return fmt.Errorf("received: %w", err)
	}
	if d.values, err = reals(d, s, g, colValue, page, t.values, d.values); err != nil {
		return fmt.Errorf("value: %w", err)
	}
	if d.scores, err = reals(d, s, g, colScore, page, t.scores, d.scores); err != nil {
		return fmt.Errorf("score: %w", err)
	}
	if d.qualities, err = d.quality(s, g, page, t.qualities); err != nil {
		return fmt.Errorf("quality: %w", err)
	}
	return nil
}

// union merges the groups' sorted dictionaries into one.
func union(groups []groupDicts, dict func(*groupDicts) []string) []string {
	var all []string
	for i := range groups {
		all = append(all, dict(&groups[i])...)
	}
	if len(groups) > 1 {
		sort.Strings(all)
	}
	n := 0
	for i, s := range all {
		if i == 0 || s != all[n-1] {
			all[n] = s
			n++
		}
	}
	return all[:n]
}

// renumber maps the entries of a group's dictionary to those of the batch.
func renumber(from, to []string) []uint32 {
	m := make([]uint32, len(from))
	for i, s := range from {
		m[i] = uint32(sort.SearchStrings(to, s))
	}
	return m
}
