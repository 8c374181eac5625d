package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/bench"
	"github.com/sluice-iot/sluice/devcluster"
)

// Rot on the disk of a node that runs is found by reading back what is not needed
// right now, reported, and repaired from what memory and peers have.

// scrubbed makes nodes read everything back all the time, and take snapshots and
// seal segments of the log early.
func scrubbed(o *devcluster.Options) {
	o.Shards = 6
	o.Environ = append(o.Environ, "SLUICE_WAL_SCRUB_EVERY=1s", "SLUICE_STORE_SCRUB_EVERY=1s", "SLUICE_WAL_SEGMENT_MIB=1")
}

// snapshotting takes snapshots of little.
func snapshotting(o *devcluster.Options) { o.Environ = append(o.Environ, "SLUICE_WAL_SNAPSHOT_KIB=16") }

// bulk is what one request brought: values that do not compress.
type bulk struct {
	messages, sensors int
}

const bulkDevices = 12

// fill posts until a node has sealed segments, and returns what was acknowledged.
func fill(t *testing.T, c *devcluster.Cluster, victim *devcluster.Node) (sent bulk) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	sent.sensors = 40
	at := time.Now().UTC().Truncate(time.Second)
	for end := time.Now().Add(eventuallyMax); metric(t, victim, "sluice_wal_segments") < 3; {
		if time.Now().After(end) {
			t.Fatalf("the log has no sealed segment within %v", eventuallyMax)
		}
		var b strings.Builder
		const messages = 20 * bulkDevices
		for i := range messages {
			ts := at.Add(time.Duration((sent.messages+i)/bulkDevices) * time.Millisecond)
			fmt.Fprintf(&b, `{"device_id":"bulk-%d","timestamp":%q,"sensors":{`, i%bulkDevices, ts.Format(time.RFC3339Nano))
			for s := range sent.sensors {
				if s > 0 {
					b.WriteByte(',')
				}
				fmt.Fprintf(&b, `"s%d":%v`, s, r.Float64())
			}
			b.WriteString("}}\n")
		}
		if counts := post(t, c.Nodes()[0], b.String()); counts.Applied+counts.Duplicate != messages { // it may have been sent again
			t.Fatalf("posted %d messages: %+v", messages, counts)
		}
		sent.messages += messages
	}
	return sent
}

// check reads everything back through one node: each message once.
func (b bulk) check(t *testing.T, n *devcluster.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for d := range bulkDevices {
		stored, err := readings(ctx, n, fmt.Sprintf("bulk-%d", d))
		if err != nil {
			t.Fatalf("read bulk-%d through %s: %v", d, n.ID, err)
		}
		if want := b.messages / bulkDevices * b.sensors; len(stored) != want {
			t.Errorf("bulk-%d through %s: %d readings, want %d", d, n.ID, len(stored), want)
		}
		slices.SortFunc(stored, func(x, y bench.Stored) int {
			if c := x.Time.Compare(y.Time); c != 0 {
				return c
			}
			return strings.Compare(x.Sensor, y.Sensor)
		})
		for i := 1; i < len(stored); i++ {
			if stored[i].Time.Equal(stored[i-1].Time) && stored[i].Sensor == stored[i-1].Sensor {
				t.Fatalf("bulk-%d through %s: %s at %v is there twice", d, n.ID, stored[i].Sensor, stored[i].Time)
			}
		}
	}
}

func TestLogThatRotsWhileTheNodeRunsIsFoundAndRebuilt(t *testing.T) {
	c := start(t, scrubbed)
	fleet, stop := publish(t, c)
	victim, other := c.Nodes()[2], c.Nodes()[0]
	sent := fill(t, c, victim)
	old := peerOf(t, victim)
	damageLog(t, victim) // its first segment: sealed, and nothing has been compacted away yet
	eventually(t, "the node goes on as another incarnation", func() bool { return peerOf(t, victim) != old })
	everybodyVotes(t, victim)
	stop()
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)
	for _, n := range c.Nodes() {
		sent.check(t, n)
	}
	log := logOf(t, victim)
	wants(t, "log of the damaged node", log, "log segment is damaged", "this node stops voting and is rebuilt as a new incarnation", "data directory set aside")
	_, rest, _ := strings.Cut(log, "log segment is damaged")
	before, _, _ := strings.Cut(rest, "data directory set aside")
	if strings.Contains(before, "leading shard") {
		t.Errorf("it led under its old name after the damage was found:\n%s", before)
	}
	reported(t, "log", "is damaged at byte", victim, other)
	if aside, err := filepath.Glob(filepath.Join(victim.Data, "damaged-*", "wal", "*.wal")); err != nil || len(aside) == 0 {
		t.Errorf("the damaged log was not kept: %v, %v", aside, err)
	}
}

func TestSnapshotThatRotsWhileTheNodeRunsIsReplaced(t *testing.T) {
	c := start(t, scrubbed, snapshotting)
	fleet, stop := publish(t, c)
	victim, other := c.Nodes()[1], c.Nodes()[0]
	var snapshot string
	eventually(t, "there is a snapshot", func() bool {
		snapshot = latestSnapshot(t, victim)
		return snapshot != ""
	})
	stop() // nothing more is written, so that hardly anything else replaces it
	awaitFlushed(t, c)
	eventually(t, "a rotten one is found", func() bool {
		snapshot = latestSnapshot(t, victim)
		return flipped(t, filepath.Join(snapshot, "state.bin"), 100) && found(t, snapshot, func() bool {
			return hasSaid(t, victim, "snapshot is damaged: another one is taken", filepath.Base(snapshot))
		})
	})
	eventually(t, "it is replaced", func() bool { return strings.Contains(logOf(t, victim), "damaged snapshot replaced") })
	abstained(t, victim, 0)
	if got := metric(t, victim, "sluice_shard_damaged_total"); got < 1 {
		t.Errorf("sluice_shard_damaged_total is %v", got)
	}
	reported(t, "snapshot", filepath.Base(snapshot), victim, other)
	noAlarms(t, victim)

	// What it has now is good enough to start from.
	said := len(logOf(t, victim))
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	everybodyVotes(t, victim)
	if log := logOf(t, victim)[said:]; strings.Contains(log, "replica is damaged") {
		t.Errorf("the replica was damaged at the next start:\n%s", log)
	}
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)
}

func TestSegmentThatRotsWhileTheNodeRunsIsFetched(t *testing.T) {
	c := start(t, scrubbed)
	fleet, stop := publish(t, c)
	victim, other := c.Nodes()[1], c.Nodes()[0]
	eventually(t, "the store has files", func() bool { return len(segmentsOf(t, victim)) > 0 })
	stop()
	awaitFlushed(t, c)
	var segment string
	eventually(t, "a rotten one is kept under another name", func() bool {
		segment = segmentsOf(t, victim)[0]
		return flipped(t, segment, 100) && found(t, segment, func() bool { _, err := os.Stat(segment + ".damaged"); return err == nil })
	})
	eventually(t, "it is set aside", func() bool { return strings.Contains(logOf(t, victim), "segment set aside") })
	eventually(t, "a good one is fetched", func() bool { return strings.Contains(logOf(t, victim), "segments fetched") })
	if got := metric(t, victim, "sluice_parquet_damaged_total"); got < 1 {
		t.Errorf("sluice_parquet_damaged_total is %v", got)
	}
	reported(t, "segment", "of shard", victim, other)
	noAlarms(t, victim)
	abstained(t, victim, 0)
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)
}

// TestSnapshotAndSegmentThatRottedWhileTheNodeWasDownAreRebuilt is what a start
// finds: the replica is not started before its peers have rebuilt it.
func TestSnapshotAndSegmentThatRottedWhileTheNodeWasDownAreRebuilt(t *testing.T) {
	c := start(t, scrubbed, snapshotting, func(o *devcluster.Options) { o.Environ = append(o.Environ, "SLUICE_WAL_TRAILING_ENTRIES=1") })
	fleet, stop := publish(t, c)
	victim, other := c.Nodes()[1], c.Nodes()[0]
	eventually(t, "there are segments", func() bool { return len(segmentsOf(t, victim)) > 0 })
	logIsCut(t, victim) // behind the segments
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, s := range snapshotsOf(t, victim) { // all of them: raft would go back to the one before
		flip(t, filepath.Join(s, "state.bin"), 100)
	}
	segment := segmentsOf(t, victim)[0]
	info, err := os.Stat(segment)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, segment, info.Size()-16) // its footer, which is all that a start reads
	said := len(logOf(t, victim))
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	everybodyVotes(t, victim)
	stop()
	wants(t, "log of the damaged node", logOf(t, victim)[said:], "replica is damaged: it neither votes nor leads", "segment set aside")
	abstained(t, victim, said)
	if got := metric(t, victim, "sluice_shard_damaged_total"); got < 1 {
		t.Errorf("sluice_shard_damaged_total is %v", got)
	}
	if got := metric(t, victim, "sluice_parquet_damaged_total"); got < 1 {
		t.Errorf("sluice_parquet_damaged_total is %v", got)
	}
	reported(t, "snapshot", "is damaged", victim, other)
	reported(t, "segment", "of shard", victim, other)
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)
	if aside, err := filepath.Glob(filepath.Join(victim.Data, "shards", "*.damaged-*")); err != nil || len(aside) == 0 {
		t.Errorf("the damaged snapshots were not kept: %v, %v", aside, err)
	}
}

// TestRottenSnapshotOfOneInFiveRenewsThatReplicaAlone: with five replicas two may be
// rebuilt, and a third that has heard of neither must not be elected by them; so the
// replica is another one to its group. The node is the same, and votes on in
// everything else.
func TestRottenSnapshotOfOneInFiveRenewsThatReplicaAlone(t *testing.T) {
	port, err := devcluster.FreePorts(10)
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, snapshotting, func(o *devcluster.Options) {
		o.Nodes, o.Zones, o.Replicas, o.Shards, o.MQTTPort, o.HTTPPort = 5, []string{"a", "b", "c", "d", "e"}, 5, 3, port, port+5
		o.Environ = append(o.Environ, "SLUICE_WAL_TRAILING_ENTRIES=1")
	})
	fleet, stop := publish(t, c)
	victim, other := c.Nodes()[3], c.Nodes()[0]
	rotten := logIsCut(t, victim)
	old := peerOf(t, victim)
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, s := range snapshotsOf(t, victim) {
		if shardOf(t, s) == rotten {
			flip(t, filepath.Join(s, "state.bin"), 100)
		}
	}
	said := map[string]int{}
	for _, n := range c.Nodes() {
		said[n.ID] = len(logOf(t, n))
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	votes := map[uint32]bool{} // replicas that have voted since
	eventually(t, "the replica votes as another incarnation", func() bool {
		st, err := status(t, other)
		if err != nil {
			return false
		}
		for _, s := range st.Shards {
			i := slices.IndexFunc(s.Replicas, func(r api.Replica) bool { return string(r.Node) == victim.ID })
			if i < 0 || s.Replicas[i].Incarnation == 0 {
				continue // it has not answered
			}
			id, r := uint32(s.ID), s.Replicas[i]
			if votes[id] && r.Role == api.RoleNonvoter {
				t.Errorf("shard %d: %+v has voted and does not any more", id, r)
			}
			votes[id] = votes[id] || r.Role != api.RoleNonvoter
			if id != rotten && r.Incarnation != 1 || id == rotten && votes[id] && r.Incarnation < 2 {
				t.Errorf("shard %d: %+v votes", id, r)
			}
		}
		return votes[rotten]
	})
	allVote(t, victim, 5)
	stop()
	if now := peerOf(t, victim); now != old {
		t.Errorf("the node was incarnation %s and is %s", old, now)
	}
	for _, n := range c.Nodes() {
		for line := range strings.Lines(logOf(t, n)[said[n.ID]:]) {
			if strings.Contains(line, "member of the shard changed") && !strings.Contains(line, fmt.Sprintf(" shard=%d ", rotten)) {
				t.Errorf("members of another shard were changed: %s", line)
			}
		}
	}
	reported(t, "snapshot", "is damaged", victim, other)
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)
}

// shardOf is the shard of a snapshot.
func shardOf(t *testing.T, snapshot string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(filepath.Base(filepath.Dir(filepath.Dir(snapshot))), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// TestDamagedReplicasGiveNoVoteUntilNobodyElseIsThere: the same shard's rows have
// rotted on two of three nodes, and the third, which could repair both, is dead. They
// withhold their votes, so that the shard has no leader, then elect one all the
// same, and have their rows back, from their logs or from the third.
func TestDamagedReplicasGiveNoVoteUntilNobodyElseIsThere(t *testing.T) {
	c := start(t, func(o *devcluster.Options) { o.Shards = 6 })
	fleet, stop := publish(t, c)
	first, pair := c.Nodes()[0], c.Nodes()[1:]
	of := func(n *devcluster.Node, folder string) []string {
		return slices.DeleteFunc(segmentsOf(t, n), func(f string) bool { return filepath.Base(filepath.Dir(f)) != folder })
	}
	var folder string // of the shard
	eventually(t, "a shard has files on both", func() bool {
		files := segmentsOf(t, pair[0])
		if len(files) > 0 {
			folder = filepath.Base(filepath.Dir(files[0]))
		}
		return folder != "" && len(of(pair[1], folder)) > 0
	})
	stop()
	for _, n := range c.Nodes() {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	said := map[string]int{}
	for _, n := range pair {
		segment := of(n, folder)[0]
		info, err := os.Stat(segment)
		if err != nil {
			t.Fatal(err)
		}
		flip(t, segment, info.Size()-16) // its footer, which is all that a start reads
		said[n.ID] = len(logOf(t, n))
	}
	for _, n := range pair {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	withheld := func() (sum float64) {
		for _, n := range pair {
			sum += metric(t, n, "sluice_shard_abstentions_total")
		}
		return sum
	}
	eventually(t, "votes are withheld", func() bool { return withheld() > 0 })
	eventually(t, "every shard has a leader all the same", func() bool {
		st, err := status(t, pair...)
		return err == nil && !slices.ContainsFunc(st.Shards, func(s api.Shard) bool { return s.Leader == "" })
	})
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	for _, n := range pair {
		everybodyVotes(t, n)
		noAlarms(t, n)
		wants(t, "log of "+n.ID, logOf(t, n)[said[n.ID]:], "gives no vote and stands in no election", "takes part in elections again")
		reported(t, "segment", "of shard", n, first)
	}
	judge(t, c, fleet)
	ledgerAddsUp(t, c, fleet)
}

// abstained checks what a node's log says since a place in it: each replica that was
// found damaged while it ran stayed out of elections until it was repaired, and did
// not begin to lead meanwhile.
func abstained(t *testing.T, n *devcluster.Node, since int) {
	t.Helper()
	const begin, end = "gives no vote and stands in no election", "takes part in elections again"
	eventually(t, "the damaged replicas of "+n.ID+" take part in elections again", func() bool {
		log := logOf(t, n)[since:]
		return strings.Contains(log, begin) && strings.Count(log, begin) == strings.Count(log, end)
	})
	out := map[string]bool{}
	for line := range strings.Lines(logOf(t, n)[since:]) {
		_, shard, _ := strings.Cut(line, " shard=")
		shard, _, _ = strings.Cut(strings.TrimSpace(shard), " ")
		switch {
		case strings.Contains(line, begin):
			out[shard] = true
		case strings.Contains(line, end):
			delete(out, shard)
		case strings.Contains(line, "leading shard") && out[shard]:
			t.Errorf("a damaged replica was elected: %s", line)
		}
	}
}

// reported checks that metric and status name a damage of a node, the status of
// another node too.
func reported(t *testing.T, kind, what string, victim, other *devcluster.Node) {
	t.Helper()
	if got := metric(t, victim, fmt.Sprintf("sluice_node_damages_total{kind=%q}", kind)); got < 1 {
		t.Errorf("sluice_node_damages_total of %s is %v", kind, got)
	}
	for _, n := range []*devcluster.Node{victim, other} {
		eventually(t, "the status of "+n.ID+" shows the damage of a "+kind, func() bool {
			st, err := status(t, n)
			if err != nil {
				return false
			}
			i := slices.IndexFunc(st.Nodes, func(x api.Node) bool { return string(x.ID) == victim.ID })
			return i >= 0 && slices.ContainsFunc(st.Nodes[i].Damages, func(d api.Damage) bool { return d.Kind == kind && strings.Contains(d.What, what) })
		})
	}
	out, stderr, code := try(t, "status", "--api", "http://"+other.HTTP)
	if code != 0 || !strings.Contains(out, "damage "+victim.ID) {
		t.Errorf("sluice status: exit code %d, %s, no damage in\n%s", code, stderr, out)
	}
}

func noAlarms(t *testing.T, n *devcluster.Node) {
	t.Helper()
	eventually(t, "nothing is left to be alarmed about", func() bool {
		st, err := status(t, n)
		return err == nil && len(st.Alarms) == 0
	})
}

// snapshotsOf lists the finished snapshots of the shards of a node.
func snapshotsOf(t *testing.T, n *devcluster.Node) (out []string) {
	t.Helper()
	sums, err := filepath.Glob(filepath.Join(n.Data, "shards", "?????", "snapshots", "*", "meta.sum"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sums {
		out = append(out, filepath.Dir(s))
	}
	return out
}

// logIsCut waits until the log of one shard of n no longer reaches back to its
// beginning, and returns which. A snapshot is there before the log behind it is cut, and raft begins
// another only when that is done: the third one is proof of the first cut, of which
// some entry is missing for sure.
func logIsCut(t *testing.T, n *devcluster.Node) (shard uint32) {
	t.Helper()
	var of string
	seen := map[string]bool{}
	for end := time.Now().Add(4 * repairMax); len(seen) < 3; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) { // each takes four times the log of the one before
			t.Fatalf("no third snapshot of one shard within %v", 4*repairMax)
		}
		for _, s := range snapshotsOf(t, n) {
			if of == "" {
				of, shard = filepath.Dir(s), shardOf(t, s)
			}
			if filepath.Dir(s) == of {
				seen[s] = true
			}
		}
	}
	return shard
}

// latestSnapshot is the newest one of the first shard that has any.
func latestSnapshot(t *testing.T, n *devcluster.Node) (latest string) {
	t.Helper()
	var newest time.Time
	shard := ""
	for _, s := range snapshotsOf(t, n) {
		of := filepath.Dir(s)
		info, err := os.Stat(filepath.Join(s, "meta.sum"))
		if err != nil || shard != "" && of != shard {
			continue
		}
		if shard = of; info.ModTime().After(newest) {
			latest, newest = s, info.ModTime()
		}
	}
	return latest
}

func segmentsOf(t *testing.T, n *devcluster.Node) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Data, "store", "*", "*.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// hasSaid reports whether a line of a node's log has all the words.
func hasSaid(t *testing.T, n *devcluster.Node, words ...string) bool {
	t.Helper()
	for line := range strings.Lines(logOf(t, n)) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return true
		}
	}
	return false
}

// found waits until damage has been found, or the file has gone for another reason.
func found(t *testing.T, path string, ok func() bool) bool {
	t.Helper()
	gone := func() bool { _, err := os.Stat(path); return err != nil }
	eventually(t, path+" is found, or goes", func() bool { return ok() || gone() })
	return ok()
}

// flip changes a few bytes of a file.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	if !flipped(t, path, at) {
		t.Fatalf("%s is not there", path)
	}
}

// flipped is false for a file that has just been removed.
func flipped(t *testing.T, path string, at int64) bool {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // its write is checked
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x40
	}
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	return true
}
