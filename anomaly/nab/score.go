package nab

import (
	"fmt"
	"math"
	"sort"
)

// Profile weighs detections, misses and false alarms.
type Profile struct {
	Name                  string
	Hit, Miss, FalseAlarm float64
}

// The three profiles of the benchmark.
var (
	Standard          = Profile{"standard", 1, 1, 0.11}
	RewardLowFalsePos = Profile{"reward_low_FP_rate", 1, 1, 0.22}
	RewardLowFalseNeg = Profile{"reward_low_FN_rate", 1, 2, 0.11}
)

// Profiles lists them in the benchmark's order.
func Profiles() []Profile { return []Profile{Standard, RewardLowFalsePos, RewardLowFalseNeg} }

// Result is what one threshold earns under one profile.
type Result struct {
	Profile     Profile
	Threshold   float64
	Score       float64 // 0 is silence, 100 perfection; may be negative
	Detected    int     // windows with a detection
	Windows     int     // windows of the corpus
	FalseAlarms int     // rows outside of windows that detect
	raw, null   float64
}

// row is a scorable row: what a detection there pays before profile weights.
type row struct {
	score  float64
	pay    float64 // inside a window 0..1, outside -1..0
	window int32   // -1 outside
}

// Sheet is a corpus with a detector's scores, ready for any threshold.
type Sheet struct {
	rows    []row // descending by score
	windows int
	scored  []bool // windows with at least one row behind probation
}

// Prepare joins the files with scores, one slice per file, one finite number per
// row.
func (c *Corpus) Prepare(scores [][]float64) (*Sheet, error) {
	if len(scores) != len(c.Files) {
		return nil, fmt.Errorf("scores of %d files for a corpus of %d", len(scores), len(c.Files))
	}
	s := &Sheet{}
	for k, f := range c.Files {
		if len(scores[k]) != len(f.Values) {
			return nil, fmt.Errorf("%s: %d scores for %d rows", f.Name, len(scores[k]), len(f.Values))
		}
		s.add(f, scores[k])
	}
	s.scored = make([]bool, s.windows)
	for _, r := range s.rows {
		if r.score != r.score {
			return nil, fmt.Errorf("a score is not a number")
		}
		if r.window >= 0 {
			s.scored[r.window] = true
		}
	}
	sort.SliceStable(s.rows, func(i, j int) bool { return s.rows[i].score > s.rows[j].score })
	return s, nil
}

// add appends the rows of one file behind its probation.
func (s *Sheet) add(f *File, scores []float64) {
	top := sigmoid(-1)
	w := 0
	for i, score := range scores {
		for w < len(f.Windows) && i > f.Windows[w].Last {
			w++
		}
		r := row{score: score, window: -1}
		switch {
		case w < len(f.Windows) && i >= f.Windows[w].First:
			in := f.Windows[w]
			r.pay = sigmoid(-float64(in.Last-i+1)/float64(in.Last-in.First+1)) / top
			r.window = int32(s.windows + w)
		case w == 0:
			r.pay = -1
		default:
			before := f.Windows[w-1]
			r.pay = sigmoid(float64(i-before.Last) / float64(before.Last-before.First))
		}
		if i >= f.Probation() {
			s.rows = append(s.rows, r)
		}
	}
	s.windows += len(f.Windows)
}

// sigmoid is the benchmark's value of a detection at p window widths behind the
// window's right end (negative inside).
func sigmoid(p float64) float64 {
	if p > 3 {
		return -1
	}
	return 2/(1+math.Exp(5*p)) - 1
}

// Best finds the threshold that earns most under a profile.
func (s *Sheet) Best(p Profile) Result {
	best := s.start(p)
	s.sweep(p, func(r *Result) bool {
		if r.raw > best.raw {
			best = *r
		}
		return true
	})
	return s.scale(best)
}

// At is what a given threshold earns: rows with a score >= threshold detect.
func (s *Sheet) At(p Profile, threshold float64) Result {
	at := s.start(p)
	s.sweep(p, func(r *Result) bool {
		if r.Threshold < threshold {
			return false
		}
		at = *r
		return true
	})
	at.Threshold = threshold
	return s.scale(at)
}

// start is the result of no detection at all.
func (s *Sheet) start(p Profile) Result {
	null := 0.0
	for _, scored := range s.scored {
		if scored {
			null -= p.Miss
		}
	}
	return Result{Profile: p, Threshold: math.Inf(1), Windows: s.windows, raw: null, null: null}
}

func (s *Sheet) scale(r Result) Result {
	r.Score = 100 * (r.raw - r.null) / (float64(s.windows)*r.Profile.Hit - r.null)
	return r
}

// sweep lowers the threshold from score to score and visits each result until
// visit returns false.
func (s *Sheet) sweep(p Profile, visit func(*Result) bool) {
	r := s.start(p)
	earned := make([]float64, s.windows)
	hit := make([]bool, s.windows)
	for i := 0; i < len(s.rows); {
		r.Threshold = s.rows[i].score
		for ; i < len(s.rows) && s.rows[i].score == r.Threshold; i++ {
			u := &s.rows[i]
			if u.window < 0 {
				r.raw += p.FalseAlarm * u.pay
				r.FalseAlarms++
				continue
			}
			if !hit[u.window] {
				hit[u.window] = true
				earned[u.window] = -p.Miss
				r.Detected++
			}
			if v := p.Hit * u.pay; v > earned[u.window] {
				r.raw += v - earned[u.window]
				earned[u.window] = v
			}
		}
		if !visit(&r) {
			return
		}
	}
}

// CrossValidate splits the files into folds (file i is in fold i mod folds),
// chooses the threshold for each on all the others, and pools what they earn.
func (c *Corpus) CrossValidate(scores [][]float64, p Profile, folds int) (Result, error) {
	total := Result{Profile: p}
	for k := range folds {
		var train, test Corpus
		var trainScores, testScores [][]float64
		for i, f := range c.Files {
			if i%folds == k {
				test.Files, testScores = append(test.Files, f), append(testScores, scores[i])
			} else {
				train.Files, trainScores = append(train.Files, f), append(trainScores, scores[i])
			}
		}
		a, err := train.Prepare(trainScores)
		if err != nil {
			return Result{}, err
		}
		b, err := test.Prepare(testScores)
		if err != nil {
			return Result{}, err
		}
		r := b.At(p, a.Best(p).Threshold)
		total.raw += r.raw
		total.null += r.null
		total.Detected += r.Detected
		total.Windows += r.Windows
		total.FalseAlarms += r.FalseAlarms
	}
	total.Threshold = math.NaN()
	total.Score = 100 * (total.raw - total.null) / (float64(total.Windows)*p.Hit - total.null)
	return total, nil
}
