package shard

import (
	"encoding/hex"
	"testing"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/telemetry"
)

// TestEntriesAndAnswersKeepTheirBytes pins the formats of FORMAT.md: what one
// version has written to a log, every later one must read.
func TestEntriesAndAnswersKeepTheirBytes(t *testing.T) {
	digest := [16]byte{0: 0xaa, 15: 0xbb}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"time":              {timeEntry(1_000_000, 0), "81010080897a00"},
		"flush":             {flushEntry{From: 1, To: 300, PreviousTo: 1, Previous: digest}.encode(), "82010001ac0201aa0000000000000000000000000000bb"},
		"flushed, a gap":    {flushedEntry(telemetry.LaneLive, 300, telemetry.Gap{From: 1, To: 200}), "83020000ac0201c801"},
		"flushed":           {flushedEntry(telemetry.LaneLate, 300, telemetry.Gap{}), "83010001ac02"},
		"quarantine remove": {quarantineRemoveEntry([]uint64{1, 300}), "8601000201ac02"},
		"result": {(&Result{Status: StatusApplied, Index: 300, Outcomes: []telemetry.Outcome{telemetry.Applied, telemetry.Duplicate}}).Append(nil),
			"01ac0200020102"},
		"gap":     {(&Result{Status: StatusGap, Next: 7}).Append(nil), "02000700"},
		"refusal": {appendAnswer(nil, nil, &NotLeaderError{Leader: "n1.00000001"}), "01" + hex.EncodeToString([]byte("n1.00000001"))},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestEntryOfALaterVersionIsNotGuessedAt(t *testing.T) {
	r := newRig(t)
	later := timeEntry(5, 0)
	later[1]++
	if err, _ := r.entry(later).(error); err == nil {
		t.Error("an entry of version 2 was applied")
	}
	tenant := wire.AppendInt(wire.AppendUint([]byte{controlBit | byte(EntryTime), controlVersion}, 9), 5)
	if err, _ := r.entry(tenant).(error); err == nil {
		t.Error("an entry of namespace 9 was applied")
	}
	for kind, whole := range map[string][]byte{
		"time": timeEntry(5, 0), "flush": flushEntry{To: 1}.encode(), "flushed": flushedEntry(telemetry.LaneLive, 9, telemetry.Gap{}), "remove": quarantineRemoveEntry([]uint64{1}),
	} {
		for cut := 1; cut < len(whole); cut++ {
			if err, _ := r.entry(whole[:cut]).(error); err == nil {
				t.Errorf("%s entry cut at %d was applied", kind, cut)
			}
		}
	}
	if r.now != 0 {
		t.Errorf("the clock is %d, want 0", r.now)
	}
}
