//go:build !mutations

package clock

import "time"

// machineOffset is nothing: the machine's clock is what it is.
func machineOffset() time.Duration { return 0 }
