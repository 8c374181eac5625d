package backlog

import "fmt"

// Hours is a time that a person can plan with.
func Hours(h float64) string {
	switch {
	case h < 1:
		return fmt.Sprintf("%.0f min", h*60)
	case h < 48:
		return fmt.Sprintf("%.1f h", h)
	}
	return fmt.Sprintf("%.0f days", h/24)
}
