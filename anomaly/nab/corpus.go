package nab

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"time"
)

const windowsPath = "labels/combined_windows.json"

// File is one series of the corpus.
type File struct {
	Name    string  // "realTweets/Twitter_volume_AAPL.csv"
	Times   []int64 // microseconds since the epoch, as if UTC
	Values  []float64
	Windows []Window // ascending
}

// Window is a labelled anomaly: rows First to Last, both included.
type Window struct{ First, Last int }

// Probation is the number of rows at the beginning that do not count.
func (f *File) Probation() int { return probation(len(f.Values)) }

func probation(rows int) int { return min(rows*15/100, 750) }

// Corpus is all files, sorted by name.
type Corpus struct{ Files []*File }

// Load reads data/ and labels/combined_windows.json.
func Load(src Source) (*Corpus, error) {
	b, err := src.ReadFile(windowsPath)
	if err != nil {
		return nil, fmt.Errorf("read labels: %w", err)
	}
	var windows map[string][][2]string
	if err := json.Unmarshal(b, &windows); err != nil {
		return nil, fmt.Errorf("parse %s: %w", windowsPath, err)
	}
	c := &Corpus{}
	for name, labels := range windows {
		f, err := loadFile(src, name, labels)
		if err != nil {
			return nil, err
		}
		c.Files = append(c.Files, f)
	}
	sort.Slice(c.Files, func(i, j int) bool { return c.Files[i].Name < c.Files[j].Name })
	return c, nil
}

func loadFile(src Source, name string, labels [][2]string) (*File, error) {
	p := "data/" + name
	stamps, values, err := column(src, p, "value")
	if err != nil {
		return nil, err
	}
	f := &File{Name: name, Values: values}
	row := make(map[int64]int, len(stamps))
	for i, s := range stamps {
		t, err := parseTime(s)
		if err != nil {
			return nil, fmt.Errorf("%s line %d: %w", p, i+2, err)
		}
		f.Times = append(f.Times, t)
		if _, repeated := row[t]; !repeated {
			row[t] = i
		}
	}
	for _, l := range labels {
		var edge [2]int
		for k, s := range l {
			t, err := parseTime(s)
			if err != nil {
				return nil, fmt.Errorf("%s: window of %s: %w", windowsPath, name, err)
			}
			i, ok := row[t]
			if !ok {
				return nil, fmt.Errorf("%s: window edge %s is not a row of %s", windowsPath, s, p)
			}
			edge[k] = i
		}
		f.Windows = append(f.Windows, Window{edge[0], edge[1]})
	}
	sort.Slice(f.Windows, func(i, j int) bool { return f.Windows[i].First < f.Windows[j].First })
	return f, nil
}

// Published reads the anomaly_score column of a detector's published results,
// <detector>/<folder>/<detector>_<file>, for every file of the corpus.
func (c *Corpus) Published(src Source, detector string) ([][]float64, error) {
	var out [][]float64
	for _, f := range c.Files {
		folder, base := splitName(f.Name)
		_, scores, err := column(src, detector+"/"+folder+"/"+detector+"_"+base, "anomaly_score")
		if err != nil {
			return nil, err
		}
		out = append(out, scores)
	}
	return out, nil
}

func splitName(name string) (folder, base string) {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[:i], name[i+1:]
		}
	}
	return "", name
}

// column reads the first column as text and the named one as numbers.
func column(src Source, p, name string) (first []string, values []float64, err error) {
	b, err := src.ReadFile(p)
	if err != nil {
		return nil, nil, fmt.Errorf("read column %s: %w", name, err)
	}
	r := csv.NewReader(bytes.NewReader(b))
	r.ReuseRecord = true
	head, err := r.Read()
	if err != nil {
		return nil, nil, fmt.Errorf("read header of %s: %w", p, err)
	}
	col := -1
	for i, h := range head {
		if h == name {
			col = i
		}
	}
	if col < 0 {
		return nil, nil, fmt.Errorf("%s has no column %s", p, name)
	}
	for line := 2; ; line++ {
		rec, err := r.Read()
		if errors.Is(err, io.EOF) {
			return first, values, nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", p, err)
		}
		v, err := strconv.ParseFloat(rec[col], 64)
		if err != nil {
			return nil, nil, fmt.Errorf("%s line %d: %w", p, line, err)
		}
		first = append(first, rec[0])
		values = append(values, v)
	}
}

func parseTime(s string) (int64, error) {
	t, err := time.Parse("2006-01-02 15:04:05.999999", s)
	if err != nil {
		t, err = time.Parse("2006-01-02 15:04", s)
	}
	if err != nil {
		return 0, fmt.Errorf("parse time %q: %w", s, err)
	}
	return t.UnixMicro(), nil
}
