package anomaly

import (
	"errors"
	"fmt"
)

// Params are the knobs of a Detector; replicas of a shard must use equal ones.
// They are few on purpose: everything else adapts to the series or is a constant
// beside the code it belongs to.
type Params struct {
	// AlarmsPerDeviceMonth is how many false alarms a device may raise in 30 days
	// on stationary data, all its sensors together. Default 1. Lower makes the
	// detector less sensitive: a factor of 10 costs about one standard deviation.
	AlarmsPerDeviceMonth float64
	// Warmup is the number of readings before scores and alerts begin. Default
	// 200; fewer than 64 leave the tails unknown.
	Warmup int
	// CloseAfter is the number of quiet readings in a row that closes an alert.
	// Default 24.
	CloseAfter int
}

// DefaultParams are the frozen defaults: the same for every series.
func DefaultParams() Params {
	return Params{AlarmsPerDeviceMonth: 1, Warmup: 200, CloseAfter: 24}
}

// Validate returns every problem of p at once.
func (p Params) Validate() error {
	var errs []error
	if !(p.AlarmsPerDeviceMonth >= 1e-3 && p.AlarmsPerDeviceMonth <= 1e4) {
		errs = append(errs, fmt.Errorf("alarms per device and month is %v, want 0.001 to 10000", p.AlarmsPerDeviceMonth))
	}
	if p.Warmup < 64 || p.Warmup > 1e6 {
		errs = append(errs, fmt.Errorf("warm-up is %d readings, want 64 to 1000000", p.Warmup))
	}
	if p.CloseAfter < 1 || p.CloseAfter > 60000 {
		errs = append(errs, fmt.Errorf("close after is %d readings, want 1 to 60000", p.CloseAfter))
	}
	return errors.Join(errs...)
}
