package parquet

import (
	"math"
	"slices"
	"testing"

	"github.com/sluice-iot/sluice/store"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestPagesEndWithTheirDevices(t *testing.T) {
	for _, c := range []struct {
		name    string
		devices []int // rows of each
		want    []int // rows of each page
	}{
		{"nothing more", []int{pageRows}, []int{pageRows}},
		{"small devices", []int{10_000, 10_000, 10_000, 100}, []int{20_000, 10_100}},
		{"to the last row", []int{pageRows - 1, pageRowsMax - pageRows + 1, 5}, []int{pageRowsMax, 5}},
		{"one row too many", []int{pageRows - 1, pageRowsMax - pageRows + 2, 5}, []int{pageRows, pageRowsMax - pageRows + 1, 5}},
		{"a device with too many", []int{2 * pageRowsMax}, []int{pageRows, pageRows, pageRows, pageRows, pageRowsMax}},
		{"ends with a page", []int{pageRows, 7}, []int{pageRows, 7}},
	} {
		var rows []telemetry.Row
		for d, n := range c.devices {
			rows = append(rows, slices.Repeat([]telemetry.Row{{Device: uint32(d)}}, n)...)
		}
		var got []int
		for lo := 0; lo < len(rows); {
			hi := pageEnd(rows, lo)
			got = append(got, hi-lo)
			lo = hi
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: pages of %v rows, want %v", c.name, got, c.want)
		}
	}
}

// TestLongPagesAreReadBack, of a flush and of what they were merged into.
func TestLongPagesAreReadBack(t *testing.T) {
	s := newStore(t)
	want := 0
	for i := range uint64(2) {
		b := fleet(1, i, i+1, 3, 7000, t0+int64(i)*7000e6) // 28,000 rows of each device
		want = 2 * len(b.Rows) / 3
		if _, err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		for _, seg := range s.Segments(1) {
			if err := s.Verify(t.Context(), seg); err != nil {
				t.Error(err)
			}
		}
		q := store.Query{Device: "sensor-00001", From: math.MinInt64, To: math.MaxInt64, Limit: math.MaxInt32}
		if points, _, err := s.Read(t.Context(), 1, 2, q); err != nil || len(points) != want {
			t.Errorf("%d points, want %d: %v", len(points), want, err)
		}
	}
	check()
	if _, err := s.merge(t.Context(), s.Segments(1)); err != nil {
		t.Fatal(err)
	}
	check()
}
