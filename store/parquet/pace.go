package parquet

import (
	"context"
	"fmt"

	"golang.org/x/time/rate"
)

// pace bounds the bytes per second of background work.
type pace struct{ limiter *rate.Limiter }

// newPace lets a quarter of a second's bytes through at once.
func newPace(bytesPerSecond int) pace {
	return pace{rate.NewLimiter(rate.Limit(bytesPerSecond), max(bytesPerSecond/4, 1))}
}

func (p pace) wait(ctx context.Context, n int64) error {
	for n > 0 {
		step := min(n, int64(p.limiter.Burst()))
		if err := p.limiter.WaitN(ctx, int(step)); err != nil {
			return fmt.Errorf("wait for the disk's turn: %w", err)
		}
		n -= step
	}
	return nil
}
