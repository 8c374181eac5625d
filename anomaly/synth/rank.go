package synth

import "slices"

// averagePrecision is the area under the curve of precision over recall when
// rows are taken by falling score; rows of equal score are taken together.
func averagePrecision(score []float64, positive []bool) float64 {
	order := make([]int, len(score))
	total := 0
	for i := range order {
		order[i] = i
		if positive[i] {
			total++
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		switch {
		case score[a] > score[b]:
			return -1
		case score[a] < score[b]:
			return 1
		}
		return 0
	})
	area, hits, before := 0.0, 0, 0
	for i, at := range order {
		if positive[at] {
			hits++
		}
		if i+1 == len(order) || score[order[i+1]] != score[at] {
			area += float64(hits-before) / float64(max(total, 1)) * float64(hits) / float64(i+1)
			before = hits
		}
	}
	return area
}
