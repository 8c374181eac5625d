package importer

import (
	"fmt"
	"iter"
	"strconv"
)

// Row is one line of a CSV file as an import would read it.
type Row struct {
	Line   int64
	Bad    string // why the line, or a cell of it, could not be used; "" when all is well
	Device string
	Time   int64 // microseconds since the epoch, 0 without a time column
	Values []Value
}

// Value is one cell of a row that holds a number.
type Value struct {
	Sensor string
	Value  float64 // 1 and 0 for true and false
}

// Rows reads a CSV file without sending anything; of cfg only Path, Stdin,
// Mapping and Bad count. An error ends the walk. Values belong to the caller
// until the next row.
//
// It is more generous than an import, because nothing is stored: a file without
// a header line is recognised, the time column is found by its content where no
// name tells it, columns that look like labels of anomalies are left out, and a
// bad cell costs itself, not its line. Date and time may have a column each, and
// where semicolons separate the fields numbers may have a decimal comma. Every line that is not empty gives a row;
// Bad says what is wrong with it.
func Rows(cfg Config) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		src, p, err := openRows(&cfg)
		if err != nil {
			yield(Row{}, err)
			return
		}
		defer src.close()
		var fields [][]byte
		row := Row{}
		headed := !p.headless
		for more := true; more; {
			var c chunk
			if c, more = src.chunk(); c.err != nil {
				more = false
			}
			for i := range c.lines {
				l := &c.lines[i]
				if l.number == 1 && headed || len(l.text) == 0 {
					continue
				}
				row = Row{Line: l.number, Values: row.Values[:0]}
				if err := p.row(l, &fields, &row); err != nil {
					row.Values, row.Bad = row.Values[:0], err.Error()
				}
				if row.Bad != "" && cfg.Bad != nil {
					cfg.Bad(l.number, row.Bad)
				}
				if !yield(row, nil) {
					return
				}
			}
			if c.err != nil {
				yield(Row{}, c.err)
			}
		}
	}
}

func openRows(cfg *Config) (*source, *plan, error) {
	if err := cfg.Mapping.Validate(); err != nil {
		return nil, nil, err
	}
	src, err := openSource(cfg)
	if err != nil {
		return nil, nil, err
	}
	sample, err := src.peek()
	if err == nil {
		err = recognise(src.name, sample)
	}
	var p *plan
	if err == nil {
		if p, err = guessPlan(cfg.Mapping, sample); err != nil {
			err = fmt.Errorf("%s: %w", src.name, err)
		}
	}
	if err != nil {
		src.close()
		return nil, nil, err
	}
	return src, p, nil
}

// row reads one line.
func (p *plan) row(l *line, fields *[][]byte, row *Row) error {
	var err error
	if l.tooLong {
		return fmt.Errorf("line is longer than %d bytes", lineBytesMax)
	}
	*fields, err = split((*fields)[:0], l.text, p.delimiter)
	f := *fields
	if err != nil {
		return err
	}
	if len(f) != len(p.columns) {
		return fmt.Errorf("%d fields, want %d", len(f), len(p.columns))
	}
	if row.Device, err = p.deviceOf(f); err != nil {
		return err
	}
	if row.Time, err = p.micros(f); err != nil {
		return err
	}
	for i := range p.sensors {
		s := &p.sensors[i]
		cell := p.cell(f[s.column])
		kind, err := kindOf(cell)
		switch {
		case err != nil:
			row.Bad = fmt.Sprintf("column %s: %q %v", s.name, cell, err)
		case kind == cellText:
			row.Bad = fmt.Sprintf("column %s: %q is not a number", s.name, cell)
		case kind == cellBool:
			v := Value{Sensor: s.name}
			if cell[0] == 't' || cell[0] == 'T' {
				v.Value = 1
			}
			row.Values = append(row.Values, v)
		case kind == cellNumber:
			v, _ := strconv.ParseFloat(cell, 64) // kindOf has read it
			row.Values = append(row.Values, Value{s.name, v})
		}
	}
	return nil
}
