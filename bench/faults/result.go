package faults

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/telemetry"
)

// Result is the verdict on one fault.
type Result struct {
	ID, Title string
	Seed      uint64
	Baseline  float64 // acknowledged messages per second before the fault
	Verdict   bench.Verdict
	Back      time.Duration // until 90 % of the rate was back (C7)
	Bound     time.Duration // of it; 0: none stated
	Slowest   time.Duration // that a client with one message in flight has waited since the fault struck
	Note      string
	Replayed  int      // scores compared with those of the log applied again (C9)
	Failures  []string // "C1: ...", at most a few of each check
	History   string   // the folder that was kept, "" if none

	kept     *History
	replayed map[telemetry.ShardID]bool // shards of which that was done
}

// Passed reports whether every check passed. The bound of C7 is a figure for a
// machine of its own and not part of it; see Late.
func (r *Result) Passed() bool { return len(r.Failures) == 0 }

// Late reports whether the rate came back later than the stated bound.
func (r *Result) Late() bool { return r.Bound > 0 && r.Back > r.Bound }

// failuresMax bounds what is said about a run by each check; its history has the
// rest.
const failuresMax = 8

func (r *Result) fail(check, format string, args ...any) {
	said := 0
	for _, f := range r.Failures {
		if strings.HasPrefix(f, check+": ") {
			said++
		}
	}
	if said < failuresMax {
		r.Failures = append(r.Failures, check+": "+fmt.Sprintf(format, args...))
	}
}

// Table prints results for people.
func Table(w io.Writer, results []Result) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "FAULT\tSEED\tACKED\tSTORED\tLOST\tTWICE\tUNSENT\tBACK TO 90 %\tBOUND\tSLOWEST ACK\tSCORES EQUAL\tVERDICT\tWHAT")
	for i := range results {
		r := &results[i]
		verdict := "pass"
		switch {
		case !r.Passed():
			verdict = "FAIL"
		case r.Late():
			verdict = "pass, late"
		}
		bound := "-"
		if r.Bound > 0 {
			bound = r.Bound.String()
		}
		what := r.Title
		if r.Note != "" {
			what += " (" + r.Note + ")"
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%v\t%s\t%v\t%d\t%s\t%s\n", r.ID, r.Seed, r.Verdict.Acked, r.Verdict.Stored,
			r.Verdict.Lost, r.Verdict.Twice, r.Verdict.Unsent, r.Back.Round(10*time.Millisecond), bound, r.Slowest.Round(time.Millisecond), r.Replayed, verdict, what)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for i := range results {
		if r := &results[i]; !r.Passed() {
			fmt.Fprintf(w, "\n%s failed, history in %s:\n  %s\n", r.ID, r.History, strings.Join(r.Failures, "\n  "))
		}
	}
	return nil
}
