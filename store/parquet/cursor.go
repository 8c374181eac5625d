package parquet

import (
	"context"
	"errors"
	"fmt"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// cursor walks over all rows of a file in their order, one decoded page in memory.
type cursor struct {
	file  *segmentFile
	dec   *decoder // of this cursor alone
	table *partsTable
	first int                                      // number of the file's first part among all parts of the caller
	pace  func(ctx context.Context, n int64) error // waits for n bytes' worth of disk; nil does not

	group, page int // of the page at hand; page -1: before the first
	row, rows   int // in the page
	dicts       groupDicts

	runs []byte // of the row group's lineage, what is behind the run at hand
	part int    // of the run at hand
	left uint64 // rows of the run at hand
}

func newCursor(f *segmentFile, d *decoder) (*cursor, error) {
	t, err := d.parts(f)
	if err != nil {
		return nil, err
	}
	return &cursor{file: f, dec: d, table: t, page: -1}, nil
}

// ready moves to the next page when the one at hand is used up; false at the end.
func (c *cursor) ready(ctx context.Context) (ok bool, err error) {
	defer guard(&err)
	for c.row >= c.rows {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		switch {
		case c.group >= len(c.file.groups):
			return false, nil
		case c.page+1 >= len(c.file.groups[c.group].pages):
			if c.left > 0 || len(c.runs) > 0 {
				return false, errors.New("the parts' rows are more than the row group's")
			}
			c.group, c.page = c.group+1, -1
		default:
			c.page++
			if err := c.load(ctx); err != nil {
				return false, fmt.Errorf("row group %d page %d: %w", c.group, c.page, err)
			}
		}
	}
	return true, nil
}

func (c *cursor) load(ctx context.Context) (err error) {
	g, d := &c.file.groups[c.group], c.dec
	if c.page == 0 {
		if c.dicts, err = d.groupDicts(c.file, g); err != nil {
			return err
		}
		if err := c.loadLineage(g); err != nil {
			return err
		}
	}
	size := int64(0)
	for col := range columns {
		size += int64(g.offsets[col][c.page].size)
	}
	if c.pace != nil {
		if err := c.pace(ctx, size); err != nil {
			return err
		}
	}
	if d.times, err = d.timestamps(c.file, g, colTime, c.page, d.times); err != nil {
		return fmt.Errorf("time: %w", err)
	}
	if d.devices, err = d.dictNumbers(c.file, g, colDevice, c.page, len(c.dicts.devices), d.devices); err != nil {
		return fmt.Errorf("device_id: %w", err)
	}
	if d.sensors, err = d.dictNumbers(c.file, g, colSensor, c.page, len(c.dicts.sensors), d.sensors); err != nil {
		return fmt.Errorf("sensor: %w", err)
	}
	if err := d.numberColumns(c.file, g, c.page, &c.dicts.numberDicts); err != nil {
		return err
	}
	c.row, c.rows = 0, int(g.pages[c.page].rows)
	return nil
}

func (c *cursor) loadLineage(g *rowGroup) error {
	c.part, c.left, c.runs = 0, uint64(g.rows), nil
	if len(c.table.parts) == 1 {
		return nil
	}
	if err := c.dec.piece(c.file, c.table.lines[c.group]); err != nil {
		return fmt.Errorf("lineage: %w", err)
	}
	c.runs, c.left = append([]byte(nil), c.dec.plain...), 0
	return nil
}

// at is a row of the page at hand; its device and sensor are numbers of dicts.
func (c *cursor) at(i int) telemetry.Row {
	d := c.dec
	return telemetry.Row{
		Time: d.times[i], Received: d.received[i], Value: d.values[i], Score: d.scores[i], Quality: d.qualities[i],
		Device: uint32(d.devices[i]), Sensor: uint32(d.sensors[i]),
	}
}

func (c *cursor) device(i int) string { return c.dicts.devices[c.dec.devices[i]] }
func (c *cursor) sensor(i int) string { return c.dicts.sensors[c.dec.sensors[i]] }

// take gives the part of the row at hand and moves behind it.
func (c *cursor) take() (part int, err error) {
	for c.left == 0 {
		r := wire.NewReader(c.runs)
		c.part, c.left = int(r.Uint()), r.Uint()
		if r.Err() != nil || c.part < 0 || c.part >= len(c.table.parts) {
			return 0, errors.New("lineage does not cover the row group")
		}
		c.runs = r.Rest()
	}
	c.left--
	c.row++
	return c.part, nil
}
