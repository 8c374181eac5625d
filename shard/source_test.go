package shard

import (
	"fmt"
	"slices"
	"testing"

	"github.com/sluice-iot/sluice/telemetry"
)

// TestRowsFindTheirMessages: each row the one in which it was applied, whole, also
// with what was a repeat in it; never one that was a repeat as a whole.
func TestRowsFindTheirMessages(t *testing.T) {
	r := newRig(t)
	r.block(message("d2", epoch2026, 7), message("d1", epoch2026, 3), message("d1", epoch2026+1, 9))
	r.block(message("d1", epoch2026, 3), message("d1", epoch2026, 3, 4), message("d1", epoch2026, 5))
	f := &flusher{shard: &Shard{id: 3, fsm: &fsm{machine: r.machine}}}
	b, err := f.batch(0, 2, r.pending.blocks, bothLanes)
	if err != nil {
		t.Fatal(err)
	}
	var rows []int
	for i := range b.Rows {
		rows = append(rows, len(b.Rows)-1-i) // the order is not theirs to choose
	}
	got := map[string][]string{}
	var order []string
	err = f.sources(b, r.pending.blocks, bothLanes, rows, func(row int, s *telemetry.Source) error {
		if n := len(order); n == 0 || order[n-1] != s.ID {
			order = append(order, s.ID)
		}
		m := &s.Message
		if b.Devices[b.Rows[row].Device] != m.Device || b.Rows[row].Time != m.Time {
			t.Errorf("row %d of %s has message %+v", row, b.Devices[b.Rows[row].Device], m)
		}
		got[s.ID] = append(got[s.ID], fmt.Sprintf("%v of %d", b.Rows[row].Value, len(m.Readings)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"3-1-0", "3-1-1", "3-1-2", "3-2-1", "3-2-2"}; !slices.Equal(order, want) {
		t.Errorf("messages %v, want %v", order, want)
	}
	for id, want := range map[string]string{"3-1-0": "7 of 1", "3-1-1": "3 of 1", "3-1-2": "9 of 1", "3-2-1": "4 of 2", "3-2-2": "5 of 1"} {
		if !slices.Equal(got[id], []string{want}) {
			t.Errorf("message %s has %v, want %s", id, got[id], want)
		}
	}
}
