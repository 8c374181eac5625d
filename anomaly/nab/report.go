package nab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sort"

	"github.com/sluice-iot/sluice/anomaly"
)

const (
	finalPath      = "final_results.json"
	thresholdsPath = "thresholds.json"

	// folds of the cross-validation: the threshold for each half of the files is
	// chosen on the other half.
	folds = 2
	// fixedSeverity is the threshold that an operator has: one false alarm of a
	// device and month, fixed before anything is seen.
	fixedSeverity = 50
)

// Scores runs the frozen defaults over the corpus. The score of a row is its
// severity, which is what an operator is shown.
func (c *Corpus) Scores() [][]float64 {
	d := anomaly.New(anomaly.DefaultParams())
	out := make([][]float64, 0, len(c.Files))
	for _, f := range c.Files {
		var s anomaly.State
		scores := make([]float64, len(f.Values))
		for i, x := range f.Values {
			scores[i] = d.Step(&s, f.Times[i], x).Severity
		}
		out = append(out, scores)
	}
	return out
}

// Line is what one detector earns, by profile name.
type Line struct {
	Detector string `json:"detector"`
	// Published is what the benchmark's authors list; nil for our own.
	Published map[string]float64 `json:"published,omitempty"`
	// Corpus is the score with the threshold from the corpus, as the benchmark
	// chooses it: for a supplied detector the published threshold, for ours the best.
	Corpus map[string]float64 `json:"corpus,omitempty"`
	// CrossValidated is the score with thresholds from the other half of the files.
	CrossValidated map[string]float64 `json:"cross_validated,omitempty"`
	// Fixed is the score at severity 50; only for ours.
	Fixed map[string]float64 `json:"fixed,omitempty"`
}

// Report is the benchmark's table with ours in it.
type Report struct {
	Files, Rows, Windows int
	Reproduced           []Line // detectors of which the rows' scores are supplied, scored by us
	Ours                 Line
	Published            []Line // the others, descending by standard
}

// supplied detectors come with the score of every row.
var supplied = []string{"numenta", "windowedGaussian", "randomCutForest"}

// Run scores the corpus in dir. Without published results beside it the report
// has ours alone.
func Run(dir string) (*Report, error) {
	src, err := OpenDir(dir)
	if err != nil {
		return nil, err
	}
	c, err := Load(src)
	if err != nil {
		return nil, err
	}
	r := &Report{Files: len(c.Files)}
	for _, f := range c.Files {
		r.Rows += len(f.Values)
		r.Windows += len(f.Windows)
	}
	if err := r.ours(c); err != nil {
		return nil, err
	}
	published, err := OpenPublished(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	return r, r.others(c, published)
}

func (r *Report) ours(c *Corpus) error {
	scores := c.Scores()
	sheet, err := c.Prepare(scores)
	if err != nil {
		return err
	}
	r.Ours = Line{Detector: "sluice", Corpus: map[string]float64{}, CrossValidated: map[string]float64{}, Fixed: map[string]float64{}}
	for _, p := range Profiles() {
		cv, err := c.CrossValidate(scores, p, folds)
		if err != nil {
			return err
		}
		r.Ours.Corpus[p.Name] = sheet.Best(p).Score
		r.Ours.CrossValidated[p.Name] = cv.Score
		r.Ours.Fixed[p.Name] = sheet.At(p, fixedSeverity).Score
	}
	return nil
}

func (r *Report) others(c *Corpus, published Source) error {
	var final map[string]map[string]float64
	var thresholds map[string]map[string]struct{ Threshold float64 }
	if err := readJSON(published, finalPath, &final); err != nil {
		return err
	}
	if err := readJSON(published, thresholdsPath, &thresholds); err != nil {
		return err
	}
	for _, name := range supplied {
		scores, err := c.Published(published, name)
		if err != nil {
			return err
		}
		sheet, err := c.Prepare(scores)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		l := Line{Detector: name, Published: final[name], Corpus: map[string]float64{}, CrossValidated: map[string]float64{}}
		for _, p := range Profiles() {
			cv, err := c.CrossValidate(scores, p, folds)
			if err != nil {
				return err
			}
			l.Corpus[p.Name] = sheet.At(p, thresholds[name][p.Name].Threshold).Score
			l.CrossValidated[p.Name] = cv.Score
		}
		r.Reproduced = append(r.Reproduced, l)
	}
	for name, scores := range final {
		r.Published = append(r.Published, Line{Detector: name, Published: scores})
	}
	sort.Slice(r.Published, func(i, j int) bool {
		a, b := &r.Published[i], &r.Published[j]
		if x, y := a.Published[Standard.Name], b.Published[Standard.Name]; x != y {
			return x > y
		}
		return a.Detector < b.Detector
	})
	return nil
}

func readJSON(src Source, name string, into any) error {
	b, err := src.ReadFile(name)
	if err != nil {
		return fmt.Errorf("read published results: %w", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("parse %s: %w", name, err)
	}
	return nil
}
