package parquet

import (
	"fmt"

	"github.com/sluice-iot/sluice/telemetry"
)

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
