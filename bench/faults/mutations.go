package faults

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluice-iot/sluice/internal/mutate"
)

// Mutation says which fault has to notice a mistake, and by which check.
type Mutation struct {
	Name  string
	Fault string
	Check string // a failure has to begin so
}

// Mutations lists every switch of package mutate.
func Mutations() []Mutation {
	return []Mutation{
		{mutate.AckBeforeFsync, "F4", ""}, // messages are gone, or votes, and then nobody leads

		{mutate.SkipDirFsync, "F4", ""}, // what goes first is drawn: a node that does not start, or messages
		{mutate.RetryFsync, "F11", "fault: "},
		{mutate.TruncateOnCorrupt, "F13a", "fault: "},
		{mutate.NoDedup, "F19", "C1-C3"},
		{mutate.FlushWithoutWatermark, "F17c", "C1-C3"},
		{mutate.StaleRead, "F8", "C6"},
	}
}

// Caught is what became of a mutation.
type Caught struct {
	Mutation
	Found bool
	By    string // the failure that shows it, or why it was not found
}

// Catch runs a fault against a binary built with the tag mutations that makes
// the mistake. Faults depend on moments, so that a mistake has a few seeds to
// show itself.
func Catch(ctx context.Context, cfg Config, m Mutation) (Caught, error) {
	c := Caught{Mutation: m, By: "every check passed"}
	cfg.Environ = append(append([]string(nil), cfg.Environ...), mutate.Env+"="+m.Name)
	cfg.Patience = brokenPatience
	for range seedsMax {
		for _, f := range All() {
			if f.ID != m.Fault {
				continue
			}
			res, err := Do(ctx, cfg, f)
			if err != nil {
				return c, err
			}
			for _, failure := range res.Failures {
				if strings.HasPrefix(failure, m.Check) {
					c.Found, c.By = true, failure
					return c, nil
				}
			}
		}
		cfg.Seed++
	}
	return c, nil
}

// brokenPatience is what a cluster that makes a mistake gets: many never come
// back, which is noticed too.
const brokenPatience = 30 * time.Second

// seedsMax is how often a mistake may hide: the readers of F8 have to ask a
// paused leader in the right moment.
const seedsMax = 3

// MutationTable prints what caught what.
func MutationTable(w io.Writer, list []Caught) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "MUTATION\tFAULT\tCAUGHT\tBY")
	for _, c := range list {
		by := c.By
		if len(by) > 120 {
			by = by[:120] + "..."
		}
		fmt.Fprintf(t, "%s\t%s\t%v\t%s\n", c.Name, c.Fault, c.Found, strings.ReplaceAll(by, "\n", " "))
	}
	return t.Flush()
}
