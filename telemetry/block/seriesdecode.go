package block

import "github.com/sluice-iot/sluice/telemetry"

// seriesDecoder reads what series wrote, and hands out values column by column.
type seriesDecoder struct {
	columns []valueColumn
	shapes  []int64 // column numbers of all shapes
	ends    []int   // of each shape in shapes
	shapeOf []int64 // per message
	total   int     // values
	ints    []int64
	values  []Reading // of all columns, one after the other
}

type valueColumn struct {
	name   int64
	kind   kind
	count  int             // of its values
	at     int             // next value in seriesDecoder.values
	last   telemetry.Value // of an attribute, and its text
	lastID uint32          // in Block.Values, + 1
}

// decode reads columns and shapes for n messages; the values follow. Names is
// the size of the dictionary, limit is of all values together.
func (s *seriesDecoder) decode(r *reader, n, names, limit int) bool {
	return s.readColumns(r, names, limit) && s.readShapes(r, n, limit)
}

// uniform reports whether all messages have one shape with every column once, in
// the order of the columns: then values go where they belong at once.
func (s *seriesDecoder) uniform() bool {
	if len(s.ends) != 1 || len(s.shapes) != len(s.columns) {
		return false
	}
	for i, c := range s.shapes {
		if c != int64(i) {
			return false
		}
	}
	return true
}

// readColumnsOfValues reads all columns for next to hand out.
func (s *seriesDecoder) readColumnsOfValues(r *reader, texts int) bool {
	s.values = resize(s.values, s.total)
	at := 0
	for i := range s.columns {
		c := &s.columns[i]
		c.at = at
		at += c.count
		s.readValues(r, c, s.values[c.at:at], 1, texts)
	}
	return !r.bad
}

// next returns a column's next value.
func (s *seriesDecoder) next(c *valueColumn) Reading {
	v := s.values[c.at]
	c.at++
	return v
}

func (s *seriesDecoder) intsOf(r *reader, n int) []int64 {
	s.ints = resize(s.ints, n)
	r.ints(s.ints)
	return s.ints
}

func (s *seriesDecoder) readColumns(r *reader, names, limit int) bool {
	columns := r.count(limit)
	kinds := r.take(columns)
	ids := s.intsOf(r, len(kinds))
	if r.bad {
		return false
	}
	s.columns = resize(s.columns, columns)
	for i, id := range ids {
		if id < 0 || id >= int64(names) {
			return false
		}
		s.columns[i] = valueColumn{name: id, kind: kind(kinds[i])}
	}
	return true
}

func (s *seriesDecoder) readShapes(r *reader, n, limit int) bool {
	shapes := r.count(n)
	s.ends = resize(s.ends, shapes)
	end := int64(0)
	for i, size := range s.intsOf(r, shapes) {
		if end += size; size < 0 || size > int64(limit) || end > int64(limit) {
			return false
		}
		s.ends[i] = int(end)
	}
	s.shapes = resize(s.shapes, int(end))
	r.ints(s.shapes)
	for _, c := range s.shapes {
		if c < 0 || c >= int64(len(s.columns)) {
			return false
		}
	}
	s.shapeOf = resize(s.shapeOf, n)
	r.ints(s.shapeOf)
	s.ints = resize(s.ints, shapes)
	used := s.ints // how many messages have each shape
	clear(used)
	for _, shape := range s.shapeOf {
		if shape < 0 || shape >= int64(shapes) {
			return false
		}
		used[shape]++
	}
	s.total = 0
	for i, times := range used {
		shape := s.shape(int64(i))
		if s.total += int(times) * len(shape); s.total > limit {
			return false
		}
		for _, c := range shape {
			s.columns[c].count += int(times)
		}
	}
	return !r.bad
}

func (s *seriesDecoder) shape(i int64) []int64 {
	from := 0
	if i > 0 {
		from = s.ends[i-1]
	}
	return s.shapes[from:s.ends[i]]
}

// readValues reads a column into every stride-th element of out. Text columns
// hold numbers below texts.
func (s *seriesDecoder) readValues(r *reader, c *valueColumn, out []Reading, stride, texts int) {
	sensor := uint32(c.name)
	switch c.kind {
	case kindNull:
		for i := range c.count {
			out[i*stride] = Reading{Sensor: sensor}
		}
	case kindDecimal:
		s.readDecimals(r, c, out, stride)
	case kindFloat:
		shift := r.byte()
		if shift > 63 {
			r.fail()
		}
		for i, v := range s.intsOf(r, c.count) {
			out[i*stride] = Reading{telemetry.Value{Kind: telemetry.KindFloat64, Mantissa: v << shift}, sensor}
		}
	case kindBool:
		for i, v := range s.intsOf(r, c.count) {
			out[i*stride] = Reading{telemetry.Value{Kind: telemetry.KindBool, Mantissa: v}, sensor}
		}
	case kindText:
		for i, v := range s.intsOf(r, c.count) {
			if v < 0 || v >= int64(texts) {
				r.fail()
				return
			}
			out[i*stride] = Reading{telemetry.Value{Kind: telemetry.KindText, Mantissa: v}, sensor}
		}
	default:
		r.fail()
	}
}

func decimal(mantissa int64, scale uint8) telemetry.Value {
	if scale == 0 {
		return telemetry.Value{Kind: telemetry.KindInt64, Mantissa: mantissa}
	}
	return telemetry.Value{Kind: telemetry.KindDecimal, Mantissa: mantissa, Scale: scale}
}

func (s *seriesDecoder) readDecimals(r *reader, c *valueColumn, out []Reading, stride int) {
	sensor, floor := uint32(c.name), uint8(0)
	mode := r.byte()
	switch mode {
	case scaleEach:
		s.readScaled(r, c, out, stride)
		return
	case scaleFixed:
		floor = 18 // nothing is shortened
	case scaleShortest1:
		floor = 1
	case scaleShortest:
	default:
		r.fail()
	}
	scale := r.byte()
	if r.bad || int(scale) >= len(pow10) {
		r.fail()
		return
	}
	for i, m := range s.intsOf(r, c.count) {
		shortest := scale
		for shortest > floor && m%10 == 0 {
			m /= 10
			shortest--
		}
		out[i*stride] = Reading{decimal(m, shortest), sensor}
	}
}

// readScaled reads decimals that each have their own scale.
func (s *seriesDecoder) readScaled(r *reader, c *valueColumn, out []Reading, stride int) {
	for i, scale := range s.intsOf(r, c.count) {
		if scale < 0 || scale >= int64(len(pow10)) {
			r.fail()
			return
		}
		out[i*stride].Value.Scale = uint8(scale)
	}
	for i, m := range s.intsOf(r, c.count) {
		at := &out[i*stride]
		*at = Reading{decimal(m, at.Value.Scale), uint32(c.name)}
	}
}
