package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/backlog"
	"github.com/sluice-iot/sluice/internal/obs"
	"github.com/sluice-iot/sluice/telemetry"
)

type statusCmd struct {
	apiFlag
	JSON bool `name:"json" help:"Print JSON: the answer of /api/v1/status with the ledger in it."`
}

// fullStatus is what the command shows.
type fullStatus struct {
	api.Status
	Ledger      *api.Ledger `json:"ledger,omitempty"`
	LedgerError string      `json:"ledger_error,omitempty"`
}

// Run implements kong.
func (c *statusCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		st, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		full := fullStatus{Status: st}
		if st.ClusterID != "" {
			// The ledger needs every shard's leader, the status does not.
			if led, err := cl.Ledger(ctx); err == nil {
				full.Ledger = &led
			} else {
				full.LedgerError = obs.OneLine(err.Error())
			}
		}
		if c.JSON {
			return printJSON(os.Stdout, full)
		}
		return printStatus(os.Stdout, &full)
	})
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// shardsShown is how many shards the status lists one by one; of more it lists
// those that need attention.
const shardsShown = 32

func printStatus(w io.Writer, st *fullStatus) error {
	if st.ClusterID == "" {
		fmt.Fprintf(w, "The cluster is not initialised; %d nodes know each other. Create it once with: sluice cluster init --shards N\n\n", len(st.Nodes))
		return printNodes(w, &st.Status)
	}
	fmt.Fprintf(w, "cluster %s, version %s, store %s, answered by %s\n", st.ClusterID, st.Version, st.Store, st.Node)
	if !st.ZoneSafe {
		fmt.Fprintln(w, "NOT ZONE SAFE: the loss of one zone would stop some shards")
	}
	for _, a := range st.Alarms {
		fmt.Fprintln(w, "ALARM:", a)
	}
	fmt.Fprintln(w)
	if err := printNodes(w, &st.Status); err != nil {
		return err
	}
	printBacklogs(w, st.Nodes)
	printDamages(w, st.Nodes)
	fmt.Fprintf(w, "\n%s\n", shardSummary(&st.Status))
	shown := st.Shards
	if len(shown) > shardsShown {
		shown = slices.DeleteFunc(slices.Clone(shown), func(s api.Shard) bool { return shardProblem(&s) == "" })
		slices.SortStableFunc(shown, worstFirst)
		attention := len(shown)
		shown = shown[:min(attention, shardsShown)]
		fmt.Fprintf(w, "%d need attention, %d of them follow; all shards: sluice shards\n", attention, len(shown))
	}
	if len(shown) > 0 {
		fmt.Fprintln(w)
		if err := printShards(w, shown); err != nil {
			return err
		}
	}
	return printLedger(w, st)
}

// printBacklogs is a line per node that says how much waits for the store.
func printBacklogs(w io.Writer, nodes []api.Node) {
	first := true
	for _, n := range nodes {
		b := n.Backlog
		if b == nil {
			continue
		}
		if first {
			fmt.Fprintln(w)
			first = false
		}
		left := ""
		if b.HoursLeft >= 0 {
			left = fmt.Sprintf(", %s left at %s/s", backlog.Hours(b.HoursLeft), size(int64(b.Rate)))
		}
		fmt.Fprintf(w, "backlog %s  %s, %s messages%s; the log takes %s of %s (%.0f %%)\n",
			n.ID, size(b.Waiting), count(b.Messages), left, size(b.Used), size(b.Budget), 100*b.Share())
	}
}

// printDamages is a line per file that was found damaged: most of them are
// repaired, but a disk that rots is to be replaced.
func printDamages(w io.Writer, nodes []api.Node) {
	first := true
	for _, n := range nodes {
		for _, d := range n.Damages {
			if first {
				fmt.Fprintln(w)
				first = false
			}
			fmt.Fprintf(w, "damage %s  %s %s: %s\n", n.ID, d.Time, d.Kind, d.What)
		}
	}
}

// printNodes is a line per node with what it carries.
func printNodes(w io.Writer, st *api.Status) error {
	leads, holds := map[telemetry.NodeID]int{}, map[telemetry.NodeID]int{}
	for i := range st.Shards {
		leads[st.Shards[i].Leader]++
		for _, r := range st.Shards[i].Replicas {
			holds[r.Node]++
		}
	}
	t := newTable(w, "NODE", "ZONE", "STATE", ">LEADS", ">REPLICAS", "MQTT", "HTTP")
	for _, n := range st.Nodes {
		t.row(string(n.ID), string(n.Zone), n.State, strconv.Itoa(leads[n.ID]), strconv.Itoa(holds[n.ID]), n.MQTT, n.HTTP)
	}
	return t.flush()
}

// shardLag is how many entries are committed and not applied.
func shardLag(s *api.Shard) uint64 {
	if s.Applied >= s.Committed {
		return 0
	}
	return s.Committed - s.Applied
}

// lagNoticed is more than a busy shard has between two looks.
const lagNoticed = 1000

// shardProblem is why a shard needs attention, "" for none.
func shardProblem(s *api.Shard) string {
	voters := 0
	for _, r := range s.Replicas {
		if r.Role != api.RoleNonvoter {
			voters++
		}
	}
	switch {
	case s.Leader == "":
		return "no leader"
	case voters < len(s.Replicas):
		return "being repaired"
	case shardLag(s) > lagNoticed:
		return "behind"
	}
	return ""
}

// worstFirst puts shards without a leader first, then those furthest behind.
func worstFirst(a, b api.Shard) int {
	if lost := (a.Leader == ""); lost != (b.Leader == "") {
		if lost {
			return -1
		}
		return 1
	}
	return cmp.Compare(shardLag(&b), shardLag(&a))
}

func shardSummary(st *api.Status) string {
	var lag uint64
	var backlog int64
	leaderless := 0
	for i := range st.Shards {
		lag = max(lag, shardLag(&st.Shards[i]))
		backlog += st.Shards[i].BacklogBytes
		if st.Shards[i].Leader == "" {
			leaderless++
		}
	}
	text := "shards: " + count(len(st.Shards))
	if leaderless > 0 {
		text += fmt.Sprintf(", %d WITHOUT A LEADER", leaderless)
	} else {
		text += ", all with a leader"
	}
	if n := len(st.Moves); n > 0 {
		text += fmt.Sprintf(", %d moving", n)
	}
	return text + fmt.Sprintf("; at most %s entries not applied, %s not flushed", count(lag), size(backlog))
}

// printShards is a line per shard. Replicas are the leader first, nonvoters in
// parentheses.
func printShards(w io.Writer, shards []api.Shard) error {
	t := newTable(w, ">SHARD", "LEADER", "REPLICAS", ">COMMITTED", ">LAG", ">UNFLUSHED", ">BACKLOG", "NOTE")
	for i := range shards {
		s := &shards[i]
		leader := string(s.Leader)
		if leader == "" {
			leader = "-"
		}
		unflushed := uint64(0)
		if s.Applied > s.Flushed {
			unflushed = s.Applied - s.Flushed
		}
		t.row(strconv.Itoa(int(s.ID)), leader, replicas(s), count(s.Committed), count(shardLag(s)), count(unflushed), size(s.BacklogBytes), shardProblem(s))
	}
	return t.flush()
}

func replicas(s *api.Shard) string {
	var names []string
	for _, r := range s.Replicas {
		name := fmt.Sprintf("%s/%s", r.Node, r.Zone)
		if r.Role == api.RoleNonvoter {
			name = "(" + name + ")"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// printLedger shows that every message is somewhere.
func printLedger(w io.Writer, st *fullStatus) error {
	if st.Ledger == nil {
		_, err := fmt.Fprintf(w, "\nledger is not available now: %s\n", st.LedgerError)
		return err
	}
	l := &st.Ledger.Totals
	_, err := fmt.Fprintf(w, "\nledger  received %s = refused %s + quarantined %s + duplicate %s + applied %s\n        applied %s = flushed %s + pending %s\n",
		count(l.Received), count(l.Refused), count(l.Quarantined), count(l.Duplicate), count(l.Applied), count(l.Applied), count(l.Flushed), count(l.Pending))
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if l.Received != l.Refused+l.Quarantined+l.Duplicate+l.Applied || l.Applied != l.Flushed+l.Pending {
		fmt.Fprintln(w, "        THE LEDGER DOES NOT ADD UP: please report this with the logs of the nodes")
	}
	return nil
}

type nodesListCmd struct {
	apiFlag
	JSON bool `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *nodesListCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		st, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(os.Stdout, st.Nodes)
		}
		return printNodes(os.Stdout, &st)
	})
}

type shardsCmd struct {
	List       shardsListCmd       `cmd:"" default:"withargs" help:"List the shards with leaders, replicas and backlog."`
	AcceptLoss shardsAcceptLossCmd `cmd:"" help:"Let a shard go on whose database has lost rows that the log no longer has."`
}

type shardsAcceptLossCmd struct {
	apiFlag
	Shard uint32 `arg:"" help:"The shard that the alarm names."`
}

// Run implements kong.
func (c *shardsAcceptLossCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		if err := cl.AcceptLoss(ctx, telemetry.ShardID(c.Shard)); err != nil {
			return fmt.Errorf("accept the loss of shard %d: %w", c.Shard, err)
		}
		fmt.Printf("shard %d goes on; deadletter list keeps the range\n", c.Shard)
		return nil
	})
}

type shardsListCmd struct {
	apiFlag
	JSON bool `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *shardsListCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		st, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(os.Stdout, st.Shards)
		}
		return printShards(os.Stdout, st.Shards)
	})
}
