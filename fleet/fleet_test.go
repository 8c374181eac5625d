package fleet

import (
	"errors"
	"strings"
	"testing"
	"time"
)

type device struct {
	id          string
	first, last time.Duration // before now
	attributes  map[string]string
	severity    float64
}

var now = time.Date(2026, 1, 23, 15, 0, 0, 0, time.UTC)

func (d *device) ID() string { return d.id }
func (d *device) Seen() (first, last int64) {
	return now.Add(-d.first).UnixMicro(), now.Add(-d.last).UnixMicro()
}
func (d *device) Attribute(key string) (string, bool) { v, ok := d.attributes[key]; return v, ok }
func (d *device) Worst() (float64, bool)              { return d.severity, d.severity > 0 }

var devices = []*device{
	{"pump-1", 100 * time.Hour, time.Minute, map[string]string{"model": "x1", "firmware": "1.10", "site": "hall 1"}, 0},
	{"pump-2", 50 * time.Hour, 2 * time.Hour, map[string]string{"model": "x2", "firmware": "1.9", "a b": `say "hi"`}, 70},
	{"valve-1", time.Hour, time.Second, nil, 20},
}

func TestExpressionsSelect(t *testing.T) {
	for text, want := range map[string]string{
		`id = "pump-1"`:                                "pump-1",
		`id != "pump-1"`:                               "pump-2 valve-1",
		`id like "pump-*"`:                             "pump-1 pump-2",
		`id like "*-1"`:                                "pump-1 valve-1",
		`id like "p*m*-1"`:                             "pump-1",
		`id like "pump-1"`:                             "pump-1",
		`id like "pump-1*pump-1"`:                      "",
		`id in ("pump-2", "valve-1")`:                  "pump-2 valve-1",
		`attributes.model = "x1"`:                      "pump-1",
		`attributes.model != "x1"`:                     "pump-2 valve-1",
		`attributes.firmware > 1.5`:                    "pump-2",
		`attributes.firmware < "1.9"`:                  "pump-1",
		`attributes.model > 1`:                         "",
		`attributes.model != 1`:                        "pump-1 pump-2 valve-1",
		`exists attributes.site`:                       "pump-1",
		`not exists attributes.site`:                   "pump-2 valve-1",
		`attributes."a b" = "say \"hi\""`:              "pump-2",
		`last_seen > -1h`:                              "pump-1 valve-1",
		`last_seen < -90m`:                             "pump-2",
		`first_seen < -2d`:                             "pump-1 pump-2",
		`last_seen >= "2026-01-23T14:59:00Z"`:          "pump-1 valve-1",
		`anomaly`:                                      "pump-2 valve-1",
		`not anomaly`:                                  "pump-1",
		`severity >= 50`:                               "pump-2",
		`severity = 0`:                                 "pump-1",
		`anomaly and severity < 50 or id="pump-1"`:     "pump-1 valve-1",
		`anomaly and (severity < 50 or id = "pump-1")`: "valve-1",
		`not not anomaly`:                              "pump-2 valve-1",
	} {
		e, err := Parse(text, now)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var got []string
		for _, d := range devices {
			if e.Matches(d) {
				got = append(got, d.id)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s selects %q, want %q", text, got, want)
		}
	}
}

func TestMistakesAreExplained(t *testing.T) {
	for text, want := range map[string]string{
		``:                                     "character 1: found the end where a field",
		`model = "x"`:                          "attributes.NAME",
		`id = pump-1`:                          `character 6: found "pump-1" where a text in quotes belongs`,
		`id = "pump`:                           "character 6: the text that begins here has no closing quote",
		`id == "a"`:                            `found "=" where`,
		`id = 'a'`:                             "double quotes",
		`id ! "a"`:                             "write != or not",
		`severity > "5"`:                       "a number",
		`severity like "5"`:                    "like is for texts",
		`exists id`:                            "exists is for attributes",
		`last_seen > 5`:                        "-1h",
		`last_seen > "yesterday"`:              "2026-01-23T15:24:46Z",
		`last_seen > -5x`:                      "-15m, -1h or -7d",
		`anomaly anomaly`:                      `"and", "or" or the end`,
		`(anomaly`:                             `or ")"`,
		`anomaly)`:                             "the end",
		`id in ()`:                             "a text in quotes",
		`id in ("a" "b")`:                      `"," or ")"`,
		`attributes. = "x"`:                    "the name of an attribute",
		`id = "a\n"`:                           "backslash",
		strings.Repeat("(", 40) + "anomaly":    "nested more than 16 deep",
		strings.Repeat("not ", 40) + "anomaly": "nested more than 16 deep",
		strings.Repeat("anomaly and ", 64) + "anomaly":     "at most 64 conditions",
		`id = "` + strings.Repeat("a", textBytesMax) + `"`: "at most 4096 bytes",
	} {
		_, err := Parse(text, now)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", text, err, want)
		}
	}
}

func FuzzParseNeverPanics(f *testing.F) {
	for _, s := range []string{`id = "a"`, `not (attributes."x" in (1, "b") or last_seen > -1h) and anomaly`, `exists attributes.a`, `id like "*a**"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := Parse(s, now)
		if (err == nil) == (e == nil) {
			t.Fatalf("%q gives %v and %v", s, e, err)
		}
		for _, d := range devices {
			if err == nil {
				e.Matches(d)
			}
		}
	})
}
