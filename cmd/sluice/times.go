package main

import (
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/api"
)

// parseTime reads RFC 3339, milliseconds since 1970, a date, or a duration that
// means so long ago.
func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d.Abs()), nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02T15:04", "2006-01-02 15:04", "2006-01-02T15:04:05.999999", "2006-01-02 15:04:05.999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	t, err := api.ParseTime(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is not a time: use RFC 3339 (2026-01-23T15:24:46Z), a date, milliseconds since 1970, or a duration like 2h for so long ago", s)
	}
	return t.Time(), nil
}
