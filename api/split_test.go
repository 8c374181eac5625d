package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

type piece struct {
	number  int
	message string
	tooLong bool
}

// cut runs a splitter to its end; the error is nil for io.EOF.
func cut(r io.Reader, lines bool, limit int) (all []piece, err error) {
	s := newSplitter(r, lines, limit)
	for {
		message, number, err := s.next(nil)
		switch {
		case errors.Is(err, errTooLong):
			all = append(all, piece{number: number, tooLong: true})
		case err == io.EOF:
			return all, nil
		case err != nil:
			return all, err
		default:
			all = append(all, piece{number: number, message: string(message)})
		}
	}
}

func TestSplitterCutsWithoutJudging(t *testing.T) {
	long := strings.Repeat("x", 100)
	for _, c := range []struct {
		name  string
		lines bool
		body  string
		want  []piece
		err   string
	}{
		{"lines", true, "{\"a\":1}\n{bad\n[1]\n", []piece{{1, `{"a":1}`, false}, {2, `{bad`, false}, {3, `[1]`, false}}, ""},
		{"lines without the last newline", true, "1\n2", []piece{{1, "1", false}, {2, "2", false}}, ""},
		{"empty lines count as lines", true, "\n \r\n1\r\n\n2\n\n", []piece{{3, "1", false}, {5, "2", false}}, ""},
		{"byte order mark", true, "\xEF\xBB\xBF1\n", []piece{{1, "1", false}}, ""},
		{"a long line costs only itself", true, "1\n" + long + "\n3\n", []piece{{1, "1", false}, {2, "", true}, {3, "3", false}}, ""},
		{"a long last line", true, "1\n" + long, []piece{{1, "1", false}, {2, "", true}}, ""},
		{"nothing", true, "", nil, ""},
		{"array", false, ` [ {"a":[1,"]"]} , {"b":"\"}"},3,"x" , true] `, []piece{{1, `{"a":[1,"]"]}`, false}, {2, `{"b":"\"}"}`, false}, {3, "3", false}, {4, `"x"`, false}, {5, "true", false}}, ""},
		{"empty array", false, "[ ]\n", nil, ""},
		{"bad elements stay inside their place", false, `[{"a":},nonsense,{"b":1}]`, []piece{{1, `{"a":}`, false}, {2, "nonsense", false}, {3, `{"b":1}`, false}}, ""},
		{"a long element costs only itself", false, `[1,{"a":"` + long + `"},3]`, []piece{{1, "1", false}, {2, "", true}, {3, "3", false}}, ""},
		{"one object over several lines", false, "{\n \"a\": 1\n}\n", []piece{{1, "{\n \"a\": 1\n}", false}}, ""},
		{"objects behind each other", false, "{\"a\":1}{\"b\":2}\n{\"c\":3}", []piece{{1, `{"a":1}`, false}, {2, `{"b":2}`, false}, {3, `{"c":3}`, false}}, ""},
		{"an object cut off goes to the parser", false, `{"a":1`, []piece{{1, `{"a":1`, false}}, ""},
		{"no JSON", false, "hello world\nagain", []piece{{1, "hello world", false}, {2, "again", false}}, ""},
		{"array not closed", false, `[1,2`, []piece{{1, "1", false}}, "element 2 is not closed"},
		{"array without its bracket", false, `[{"a":1}`, []piece{{1, `{"a":1}`, false}}, "not closed after element 1"},
		{"comma missing", false, `[{} {}]`, []piece{{1, "{}", false}}, "separate elements with commas"},
		{"comma too many", false, `[1,]`, []piece{{1, "1", false}}, "comma follows element 1"},
		{"something behind the array", false, `[1] {}`, []piece{{1, "1", false}}, "follows the end of the array"},
		{"only a bracket", false, `[`, nil, "not closed after element 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := cut(iotest.OneByteReader(strings.NewReader(c.body)), c.lines, 64)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("body %q: error %v, want %q", c.body, err, c.err)
			}
			if len(got) != len(c.want) {
				t.Fatalf("body %q: got %v, want %v", c.body, got, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("body %q, message %d: got %+v, want %+v", c.body, i, got[i], c.want[i])
				}
			}
		})
	}
}

func TestSplitterTakesExactlyTheLimit(t *testing.T) {
	for _, lines := range []bool{true, false} {
		for size := 2; size < 9; size++ {
			body := "{" + strings.Repeat(" ", size-2) + "}"
			got, err := cut(strings.NewReader(body+"\n"), lines, 5)
			if err != nil || len(got) != 1 || got[0].tooLong != (size > 5) {
				t.Errorf("lines %v, %d bytes with a limit of 5: got %+v, %v", lines, size, got, err)
			}
		}
	}
}

func TestSplitterPassesReadErrorsOn(t *testing.T) {
	broken := errors.New("connection reset")
	for _, lines := range []bool{true, false} {
		got, err := cut(io.MultiReader(strings.NewReader("{}\n{\"half"), iotest.ErrReader(broken)), lines, 64)
		if !errors.Is(err, broken) || len(got) != 1 || got[0].message != "{}" {
			t.Errorf("lines %v: got %+v, %v: half a message must not pass for one", lines, got, err)
		}
	}
}

// jsonValue draws something that encoding/json can write.
func jsonValue(depth int) *rapid.Generator[any] {
	leaf := rapid.OneOf(
		rapid.Float64().Filter(func(f float64) bool { return f-f == 0 }).AsAny(), rapid.String().AsAny(), rapid.Bool().AsAny(), rapid.Just[any](nil),
	)
	if depth == 0 {
		return leaf
	}
	return rapid.OneOf(leaf,
		rapid.SliceOfN(jsonValue(depth-1), 0, 4).AsAny(),
		rapid.MapOfN(rapid.String(), jsonValue(depth-1), 0, 4).AsAny())
}

func TestSplitterAgreesWithEncodingJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(jsonValue(3), 0, 8).Draw(t, "values")
		body, err := json.Marshal(values)
		if err != nil {
			t.Skip("not JSON")
		}
		if rapid.Bool().Draw(t, "indent") {
			var b bytes.Buffer
			_ = json.Indent(&b, body, " ", "\t")
			body = b.Bytes()
		}
		var want []json.RawMessage
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatal(err)
		}
		got, err := cut(bytes.NewReader(body), false, 1<<20)
		if err != nil || len(got) != len(want) {
			t.Fatalf("body %s: got %v, %v; want %d elements", body, got, err, len(want))
		}
		for i := range want {
			if got[i].message != string(want[i]) {
				t.Fatalf("body %s, element %d: got %q, want %q", body, i+1, got[i].message, want[i])
			}
		}
	})
}

// FuzzSplitter looks for panics, endless loops, and messages that are not in the
// body or over the limit.
func FuzzSplitter(f *testing.F) {
	for _, s := range []string{"", "[", "[1,2]", "{\"a\":\"\\\"}\"}\n\n1", "[{\"a\":[1]},\"]\"]", "]}]", "\xEF\xBB\xBF[]", "[1,]", "\"", "[\"\\", "a,b\r\nc"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, body string, lines bool) {
		got, _ := cut(strings.NewReader(body), lines, 16)
		last := 0
		for _, p := range got {
			if p.number <= last || len(p.message) > 16 || !strings.Contains(body, p.message) || !p.tooLong && p.message == "" {
				t.Fatalf("body %q: piece %+v behind number %d", body, p, last)
			}
			last = p.number
		}
	})
}
