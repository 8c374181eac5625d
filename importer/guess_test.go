package importer

import (
	"fmt"
	"strings"
	"testing"
)

// rowsOf is what Rows makes of a text, a line each: time, sensors, what is bad.
func rowsOf(text string) (string, error) {
	var b strings.Builder
	for row, err := range Rows(Config{Path: "-", Stdin: strings.NewReader(text), Mapping: Mapping{DeviceID: "d"}}) {
		if err != nil {
			return b.String(), err
		}
		fmt.Fprintf(&b, "%d:%d", row.Line, row.Time/1_000_000)
		for _, v := range row.Values {
			fmt.Fprintf(&b, " %s=%v", v.Sensor, v.Value)
		}
		if row.Bad != "" {
			b.WriteString(" !")
		}
		b.WriteByte(';')
	}
	return b.String(), nil
}

func TestRowsUnderstandsTheFilesThatPeopleHave(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"plain", "timestamp,value\n2026-01-01 00:00:00,1\n2026-01-01 00:05:00,2\n", "2:1767225600 value=1;3:1767225900 value=2;"},
		{"epoch seconds", "ts,v\n1767225600,1\n1767225900,2\n", "2:1767225600 v=1;3:1767225900 v=2;"},
		{"epoch milliseconds", "time,v\n1767225600000,1\n", "2:1767225600 v=1;"},
		{"epoch microseconds", "epoch,v\n1767225600000000,1\n", "2:1767225600 v=1;"},
		{"zone", "Time,v\n2026-01-01T01:00:00+01:00,1\n", "2:1767225600 v=1;"},
		{"slashes", "date,v\n2026/01/01 00:00:00,1\n", "2:1767225600 v=1;"},
		{"no header", "2026-01-01 00:00:00,1\n2026-01-01 00:05:00,2\n", "1:1767225600 c2=1;2:1767225900 c2=2;"},
		{"a name nobody knows", "when,v\n2026-01-01 00:00:00,1\n2026-01-01 00:05:00,2\n", "2:1767225600 v=1;3:1767225900 v=2;"},
		{"an index without name", ",v\n2026-01-01 00:00:00,1\n2026-01-01 00:05:00,2\n", "2:1767225600 v=1;3:1767225900 v=2;"},
		{"numbered rows", ",time,v\n0,2026-01-01 00:00:00,1\n1,2026-01-01 00:05:00,2\n", "2:1767225600 v=1;3:1767225900 v=2;"},
		{"labels", "datetime;a;b;anomaly;changepoint\n2026-01-01 00:00:00;1;2;0;0\n", "2:1767225600 a=1 b=2;"},
		{"text in a cell", "time,a,b\n2026-01-01 00:00:00,1,2\n2026-01-01 00:05:00,x,2\n2026-01-01 00:10:00,,3\n", "2:1767225600 a=1 b=2;3:1767225900 b=2 !;4:1767226200 b=3;"},
		{"bad time", "time,a\n2026-01-01 00:00:00,1\nyesterday,2\n", "2:1767225600 a=1;3:0 !;"},
		{"decimal commas", "time;a;b\n2026-01-01 00:00:00;1,5;-0,25\n2026-01-01 00:05:00;2;1,2,3\n", "2:1767225600 a=1.5 b=-0.25;3:1767225900 a=2 !;"},
		{"no decimal commas", "time,a\n2026-01-01 00:00:00,\"1,5\"\n2026-01-01 00:05:00,2\n", "2:1767225600 !;3:1767225900 a=2;"},
		{"date and time apart", "Date,Time,a\n2026-01-01,00:00:00,1\n01.01.2026,00:05:00,2\n", "2:1767225600 a=1;3:1767225900 a=2;"},
		{"a date beside the time", "date,time,a\nmonday,2026-01-01 00:00:00,1\n", "2:1767225600 a=1;"},
		{"zeroes of a lost power", "time,a\n2026-01-01 00:00:00,1\n\x00\x00\x00\n2026-01-01 00:05:00,2\n", "2:1767225600 a=1;3:0 !;4:1767225900 a=2;"},
		{"windows", "\xef\xbb\xbftime,a\r\n2026-01-01 00:00:00,1\r\n", "2:1767225600 a=1;"},
	} {
		got, err := rowsOf(c.text)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, error %v, want %q", c.name, got, err, c.want)
		}
	}
}

func TestRowsRefusesWithTheReason(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"empty", "", "is empty"},
		{"blank lines", "\n \r\n\n", "is empty but for blanks"},
		{"UTF-16", "\xff\xfet\x00,\x00v\x00\n\x00", "convert it to UTF-8"},
		{"no text", "PK\x03\x04\x00\x00\n", "byte 5 is zero"},
		{"old line ends", "time,a\r2026-01-01 00:00:00,1\r", "carriage returns alone"},
		{"one name twice", "time,a,a\n2026-01-01 00:00:00,1,2\n", "both named"},
		{"names that are none", "a\x1b[1m,b\n1,2\n", `"a\x1b[1m", b`},
		{"no time", "a,b\n1,2\n3,4\n", "no column holds the time"},
		{"no numbers", "time,a\n2026-01-01 00:00:00,x\n", "no column holds numbers"},
	} {
		_, err := rowsOf(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q in it", c.name, err, c.want)
		}
	}
}
