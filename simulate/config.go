package simulate

import (
	"errors"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// Config is the fleet.
type Config struct {
	Brokers []string // host:port of nodes; connection i begins at broker i modulo their number
	Devices int      // 1 to devicesMax
	// Interval is the time between two messages of one device. Default 1 s. The
	// devices' phases are spread evenly over it.
	Interval time.Duration
	// Seed makes the fleet: equal seeds give equal devices. Default 0.
	Seed uint64
	// FaultEvery is the mean time between two faults of one device. Default 1 h;
	// negative is never.
	FaultEvery time.Duration
	// Prefix begins the device ids, "sim-" by default.
	Prefix string
	// ConnectionsMax bounds the connections; with more devices they share.
	// Default 1000: each takes a file descriptor here and one at the node.
	ConnectionsMax int
	// Window is how many messages of one connection may wait for their answer,
	// at least two per device on it. Default 16.
	Window int
	// DrainTimeout is how long Run waits for answers when ctx has ended. Default
	// 5 s.
	DrainTimeout time.Duration
}

const (
	devicesMax        = 1_000_000 // about 200 B each
	connectionsMax    = 20_000    // files of one process on a usual machine
	intervalMin       = 10 * time.Millisecond
	intervalMax       = 24 * time.Hour
	connectionsUsual  = 1000
	windowUsual       = 16
	faultEveryUsual   = time.Hour
	drainTimeoutUsual = 5 * time.Second
)

// Validate returns every problem of the configuration.
func (c *Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("brokers is empty: give at least one host:port"))
	}
	if c.Devices < 1 || c.Devices > devicesMax {
		errs = append(errs, fmt.Errorf("devices is %d: use 1 to %d", c.Devices, devicesMax))
	}
	if c.Interval != 0 && (c.Interval < intervalMin || c.Interval > intervalMax) {
		errs = append(errs, fmt.Errorf("interval is %v: use %v to %v", c.Interval, intervalMin, intervalMax))
	}
	if c.ConnectionsMax < 0 || c.ConnectionsMax > connectionsMax {
		errs = append(errs, fmt.Errorf("connections is %d: use 1 to %d", c.ConnectionsMax, connectionsMax))
	}
	if id := deviceID(c.prefix(), devicesMax); !telemetry.ValidDeviceID(id) {
		errs = append(errs, fmt.Errorf("prefix %q makes device ids like %q: use letters, digits and . _ : @ = ~ -, beginning with a letter or digit", c.Prefix, id))
	}
	return errors.Join(errs...)
}

func (c *Config) prefix() string {
	if c.Prefix == "" {
		return "sim-"
	}
	return c.Prefix
}

func (c *Config) defaults() {
	c.Prefix = c.prefix()
	if c.Interval == 0 {
		c.Interval = time.Second
	}
	if c.FaultEvery == 0 {
		c.FaultEvery = faultEveryUsual
	}
	if c.ConnectionsMax == 0 {
		c.ConnectionsMax = connectionsUsual
	}
	if c.Window == 0 {
		c.Window = windowUsual
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = drainTimeoutUsual
	}
}

// deviceID names device i, counted from 0: sim-00042.
func deviceID(prefix string, i int) string { return fmt.Sprintf("%s%05d", prefix, i) }
