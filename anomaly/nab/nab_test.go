package nab

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
)

// dataDir is the benchmark's folder in the shared test data: SLUICE_DATA, or
// shared/data beside one of the folders above this one.
func dataDir(t testing.TB) string {
	root := os.Getenv("SLUICE_DATA")
	if root == "" {
		dir, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for ; filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
			if root = filepath.Join(dir, "shared", "data"); isDir(root) {
				break
			}
		}
	}
	if dir := filepath.Join(root, "nab"); isDir(dir) {
		return dir
	}
	t.Skip("no benchmark data: set SLUICE_DATA to a folder that holds nab/")
	return ""
}

func isDir(p string) bool {
	i, err := os.Stat(p)
	return err == nil && i.IsDir()
}

func loadCorpus(t testing.TB) *Corpus {
	src, err := OpenDir(dataDir(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The published figure is what the published threshold earns; the benchmark's own
// search for it climbed a hill and missed the best one once (numenta, low FP).
func TestScorerReproducesPublishedResults(t *testing.T) {
	published, err := OpenPublished(dataDir(t))
	if err != nil {
		t.Skip(err)
	}
	var final map[string]map[string]float64
	var thresholds map[string]map[string]struct{ Threshold float64 }
	if err := errors.Join(readJSON(published, finalPath, &final), readJSON(published, thresholdsPath, &thresholds)); err != nil {
		t.Fatal(err)
	}
	c := loadCorpus(t)
	for _, detector := range []string{"numenta", "windowedGaussian", "randomCutForest"} {
		scores, err := c.Published(published, detector)
		if err != nil {
			t.Fatal(err)
		}
		sheet, err := c.Prepare(scores)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range Profiles() {
			r, best := sheet.At(p, thresholds[detector][p.Name].Threshold), sheet.Best(p)
			cv, err := c.CrossValidate(scores, p, 2)
			if err != nil {
				t.Fatal(err)
			}
			want := final[detector][p.Name]
			t.Logf("%-17s %-19s %9.5f, published %9.5f; best threshold %6.2f, threshold from the other half %6.2f", detector, p.Name, r.Score, want, best.Score, cv.Score)
			if math.Abs(r.Score-want) > 0.01 || best.Score < r.Score {
				t.Errorf("%s %s: %.5f at the published threshold, published %.5f, best %.5f", detector, p.Name, r.Score, want, best.Score)
			}
		}
	}
}

// The floor is below what was measured when it was written, so that a change
// that costs detection is noticed; it is no goal to tune for.
func TestFrozenDefaultsOnTheBenchmark(t *testing.T) {
	c := loadCorpus(t)
	scores := c.Scores()
	sheet, err := c.Prepare(scores)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Profiles() {
		best, fixed := sheet.Best(p), sheet.At(p, 50)
		cv, err := c.CrossValidate(scores, p, 2)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%-19s best %6.2f (threshold %.1f, %d of %d windows, %d false alarms), at severity 50 %6.2f (%d windows, %d false alarms), cross-validated %6.2f",
			p.Name, best.Score, best.Threshold, best.Detected, best.Windows, best.FalseAlarms, fixed.Score, fixed.Detected, fixed.FalseAlarms, cv.Score)
	}
	if r := sheet.Best(Standard); r.Score < 55 {
		t.Errorf("standard profile %.2f, was above 55", r.Score)
	}
}
