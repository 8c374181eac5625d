package bench

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Table writes the outage for people.
func (o *Outage) Table(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "database away for %v at %.0f messages/s of %d readings\n", o.For, o.Rate, readingsPerMessage)
	fmt.Fprintf(&b, "acknowledged %d messages, %d not; %d rows in the database: %d lost, %d twice\n", o.Acked, o.Refused, o.Rows, o.Missing, o.Twice)
	left := "it does not grow"
	if h := o.Backlog.HoursLeft; h >= 0 {
		left = fmt.Sprintf("%.1f hours left", h)
	}
	fmt.Fprintf(&b, "backlog at the end: %d messages, %.1f MiB of log on all replicas, %s\n", o.Backlog.Messages, float64(o.Backlog.Bytes)/(1<<20), left)
	fmt.Fprintf(&b, "drained in %v: %.0f rows/s\n\n", o.Drain.Round(time.Second), o.DrainRows)
	fmt.Fprintf(&b, "%-8s %8s %10s %10s %12s %12s %10s\n", "phase", "time", "ack p50", "ack p99", "db p50", "db p99", "rows/COPY")
	for _, p := range o.Phases {
		fmt.Fprintf(&b, "%-8s %8s %8.2fms %8.2fms %10.0fms %10.0fms %10.0f\n", p.Name, p.Duration.Round(time.Second), p.P50, p.P99, p.Database50, p.Database99, p.CopyRows)
	}
	fmt.Fprintf(&b, "\n%-8s %-6s %10s %10s %10s %12s\n", "phase", "node", "first MiB", "last MiB", "most MiB", "MiB per hour")
	for _, p := range o.Phases {
		for _, t := range p.Memory {
			fmt.Fprintf(&b, "%-8s %-6s %10.1f %10.1f %10.1f %12.1f\n", p.Name, t.Node, t.First, t.Last, t.Most, t.MiBPerHour)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
