package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/importer"
	"github.com/sluice-iot/sluice/simulate"
	"github.com/sluice-iot/sluice/telemetry"
	"github.com/sluice-iot/sluice/wal"
)

// statusOf is a cluster with so many nodes and shards, of which some have
// trouble.
func statusOf(nodes, shards int) *fullStatus {
	st := &fullStatus{Status: api.Status{ClusterID: "YD3EFFHNIRVB7TZA", Node: "n0", Version: "1.0.0", Store: "parquet", ZoneSafe: true}}
	for i := range nodes {
		st.Nodes = append(st.Nodes, api.Node{
			ID: telemetry.NodeID(fmt.Sprintf("n%d", i)), Zone: telemetry.Zone('a' + rune(i%3)), State: api.NodeAlive,
			MQTT: fmt.Sprintf("10.0.0.%d:1883", i+1), HTTP: fmt.Sprintf("10.0.0.%d:8080", i+1),
		})
	}
	for i := range shards {
		s := api.Shard{ID: telemetry.ShardID(i), Committed: uint64(1_000_000 + 37*i), BacklogBytes: int64(i) * 51_000}
		s.Applied, s.Flushed = s.Committed-uint64(i%3), s.Committed-uint64(100+i)
		for r := range 3 {
			n := st.Nodes[(i+r)%nodes]
			role := api.RoleVoter
			if r == 0 {
				role, s.Leader = api.RoleLeader, n.ID
			}
			s.Replicas = append(s.Replicas, api.Replica{Node: n.ID, Zone: n.Zone, Role: role})
		}
		st.Shards = append(st.Shards, s)
	}
	st.Ledger = &api.Ledger{Totals: api.LedgerCounts{Received: 1_234_567, Refused: 3, Quarantined: 12, Duplicate: 552, Applied: 1_234_000, Flushed: 1_200_000, Pending: 34_000}}
	return st
}

func TestStatusIsReadable(t *testing.T) {
	laptop := statusOf(3, 24)
	large := statusOf(9, 256)
	sick := statusOf(9, 256)
	sick.ZoneSafe = false
	sick.Alarms = []string{"disk of n3 is 84 % full"}
	sick.Nodes[3].State, sick.Nodes[5].State = api.NodeDead, api.NodeDraining
	sick.Shards[17].Leader = ""
	for i := range sick.Shards[17].Replicas {
		sick.Shards[17].Replicas[i].Role = api.RoleVoter
	}
	sick.Shards[40].Replicas[2].Role = api.RoleNonvoter
	sick.Shards[200].Applied -= 5000
	sick.Ledger, sick.LedgerError = nil, "503 Service Unavailable: shard 17 has no leader"
	fresh := &fullStatus{Status: api.Status{Node: "n0", Nodes: laptop.Nodes}}
	odd := statusOf(1, 1)
	odd.Shards[0].Replicas = odd.Shards[0].Replicas[:1]
	odd.Ledger.Totals.Received++
	for name, st := range map[string]*fullStatus{"status-24": laptop, "status-256": large, "status-256-sick": sick, "status-fresh": fresh, "status-odd": odd} {
		var b strings.Builder
		if err := printStatus(&b, st); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.String())
		for line := range strings.Lines(b.String()) {
			if len(line) > 121 {
				t.Errorf("%s: a line of %d characters: %s", name, len(line), line)
			}
		}
		if n := strings.Count(b.String(), "\n"); n > 50 {
			t.Errorf("%s: %d lines do not fit on a screen", name, n)
		}
	}
}

func TestReadingsInAllForms(t *testing.T) {
	at := func(s string) api.Time {
		v, err := api.ParseTime(s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	readings := []api.Reading{
		{Time: at("2026-01-23T15:24:46.123456Z"), Sensor: "temperature", Value: 21.52, Score: 0.13},
		{Time: at("2026-01-23T15:24:46.123456Z"), Sensor: "door, left", Value: 1, Quality: telemetry.QualityBool | telemetry.QualityWarmup},
		{Time: at("2026-01-23T15:24:47Z"), Sensor: "temperature", Value: 1e300, Score: 0.999, Quality: telemetry.QualityReceiptTime | telemetry.QualityFuture},
		{Time: at("2026-01-23T15:24:47Z"), Sensor: "charge", Value: -1.6e-19},
	}
	for name, printer := range readingPrinters {
		for n, list := range map[string][]api.Reading{"readings": readings, "readings-none": nil} {
			var b strings.Builder
			p := printer(&b)
			for i := range list {
				if err := p.reading(&list[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.end(); err != nil {
				t.Fatal(err)
			}
			golden(t, n+"-"+name, b.String())
		}
	}
}

func TestDeviceWithItsAnomaly(t *testing.T) {
	opened, closed := api.Time(1_769_181_886_000_000), api.Time(1_769_182_886_000_000)
	d := api.Device{
		ID: "pump-7", FirstSeen: opened, LastSeen: closed, Attributes: map[string]string{"firmware_version": "1.2.3", "color": "blue"},
		Latest:    []api.Reading{{Time: closed, Sensor: "temperature", Value: 85.2, Score: 0.97}},
		Anomalies: []api.Anomaly{{ID: "3-17-0", DeviceID: "pump-7", Sensor: "temperature", Opened: opened, Severity: 96.6, Cause: "spike", Value: 85.2, Expected: 21.4, Low: 20.123456, High: 22.9}},
	}
	var b strings.Builder
	if err := printDevice(&b, &d); err != nil {
		t.Fatal(err)
	}
	table := anomalyTable(&b)
	d.Anomalies[0].Closed = &closed
	table.row(anomalyRow(&d.Anomalies[0])...)
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	golden(t, "device", b.String())
}

func TestLogStatistics(t *testing.T) {
	st := wal.Stats{
		Dir: "data/n0/wal", Node: "n0.5f3a9c1e",
		Segments: []wal.SegmentStats{
			{Name: "0000000000000001.wal", Bytes: 64 << 20, Used: 64 << 20, Live: 12 << 20, State: "sealed", Created: time.Unix(1_769_181_886, 0).UTC(), Key: "8c1f0e6b5d3a2974"},
			{Name: "0000000000000002.wal", Bytes: 64 << 20, Used: 4 << 10, State: "empty"},
		},
		Groups: []wal.GroupStats{{ID: 0, First: 1, Last: 36, Bytes: 4500}, {ID: 1, First: 1001, Last: 70_000, Floor: 69_000, Commit: 70_000, Bytes: 3 << 20, Hidden: true}},
		Torn:   &wal.Torn{Segment: "0000000000000001.wal", Offset: 12345},
	}
	var b strings.Builder
	if err := printWALStats(&b, &st); err != nil {
		t.Fatal(err)
	}
	rep := wal.Report{Stats: st, Records: 9000, Entries: 8000}
	if err := printReport(&b, &rep); err != nil {
		t.Fatal(err)
	}
	rep.Damage = []*wal.CorruptError{{Segment: "0000000000000001.wal", Offset: 4096, Reason: "checksum does not match"}}
	if err := printReport(&b, &rep); err != nil {
		t.Fatal(err)
	}
	golden(t, "wal", b.String())
}

func TestSummaries(t *testing.T) {
	var b strings.Builder
	sum := importer.Summary{
		Counts:  importer.Counts{Lines: 20_632, Messages: 20_600, Readings: 494_400, Bad: 30, Quarantined: 1, Refused: 1},
		Earlier: importer.Counts{Lines: 600, Messages: 600}, Ignored: []string{"name", "comment"}, Resent: 17, Elapsed: 2 * time.Second, Complete: true,
	}
	printSummary(&b, "train.txt.gz", &sum, nil)
	printSummary(&b, "train.txt.gz", &importer.Summary{Counts: sum.Counts, Already: true}, nil)
	printSummary(&b, "train.txt.gz", &importer.Summary{}, errors.New("nothing happened"))
	if err := fleetSummary(&b, simulate.Stats{Published: 6000, Acknowledged: 5990, Unanswered: 10, Resent: 40, Skipped: 3, Connections: 100, P50: 4312 * time.Microsecond, P99: 31 * time.Millisecond, Max: 1234 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if err := fleetSummary(&b, simulate.Stats{}); err == nil {
		t.Error("a fleet without any answer is no error")
	}
	golden(t, "summaries", b.String())
}

func TestVerdictOfAnImport(t *testing.T) {
	for _, c := range []struct {
		sum    importer.Counts
		strict bool
		fails  bool
	}{
		{importer.Counts{Lines: 10, Messages: 10}, true, false},
		{importer.Counts{Lines: 10, Messages: 9, Bad: 1}, false, false},
		{importer.Counts{Lines: 10, Messages: 9, Bad: 1}, true, true},
		{importer.Counts{Lines: 10, Messages: 9, Quarantined: 1}, true, true},
		{importer.Counts{Lines: 10, Bad: 10}, false, true},
		{importer.Counts{Lines: 10, Refused: 10}, false, true},
		{importer.Counts{Lines: 1, Empty: 1}, true, false},
	} {
		cmd := importCmd{Strict: c.strict}
		if err := cmd.verdict(&importer.Summary{Counts: c.sum}); (err != nil) != c.fails {
			t.Errorf("%+v strict %v: %v", c.sum, c.strict, err)
		}
	}
}

func TestBadLinesAreBounded(t *testing.T) {
	var b strings.Builder
	r := &lineReport{w: &b, what: "lines that are not stored as telemetry"}
	for i := range int64(1000) {
		r.bad(i+1, "two\nlines of reason")
	}
	r.end()
	if n := strings.Count(b.String(), "\n"); n != badLinesShown+1 || !strings.HasSuffix(b.String(), "and 980 more lines that are not stored as telemetry\n") {
		t.Errorf("%d lines:\n%s", n, b.String())
	}
}
