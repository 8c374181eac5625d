package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
)

// csvList writes rows below a heading, which stands there without rows too.
type csvList struct {
	w     *csv.Writer
	head  []string
	begun bool
}

func (l *csvList) row(cells []string) error {
	if err := l.begin(); err != nil {
		return err
	}
	return l.w.Write(cells)
}

func (l *csvList) begin() error {
	if l.begun {
		return nil
	}
	l.begun = true
	return l.w.Write(l.head)
}

func (l *csvList) end() error {
	if err := l.begin(); err != nil {
		return err
	}
	l.w.Flush()
	return l.w.Error()
}

// jsonList writes the form of the API, an object with one list of that name.
type jsonList struct {
	w    io.Writer
	name string
	n    int
}

func (l *jsonList) item(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	before := ",\n"
	if l.n == 0 {
		before = `{"` + l.name + `":[` + "\n"
	}
	l.n++
	_, err = fmt.Fprintf(l.w, "%s%s", before, text)
	return err
}

func (l *jsonList) end() error {
	after := "\n]}\n"
	if l.n == 0 {
		after = `{"` + l.name + `":[]}` + "\n"
	}
	_, err := io.WriteString(l.w, after)
	return err
}
