package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/sluice-iot/sluice/anomaly/nab"
)

type benchNABCmd struct {
	Data string `required:"" placeholder:"DIR" help:"Folder with nab.tar.gz and published_scores.tar.xz, or an unpacked benchmark."`
	JSON bool   `name:"json" help:"Print JSON."`
}

// Help is shown with --help.
func (benchNABCmd) Help() string {
	return "Scores the Numenta Anomaly Benchmark with the frozen defaults of the detector, and reproduces the published scores of the detectors whose row scores are supplied."
}

// Run implements kong.
func (c *benchNABCmd) Run() error {
	r, err := nab.Run(c.Data)
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	return printNAB(r)
}

func printNAB(r *nab.Report) error {
	fmt.Printf("Numenta Anomaly Benchmark: %d files, %s rows, %d windows\n\n", r.Files, count(r.Rows), r.Windows)
	titles := []string{"DETECTOR", "THRESHOLD"}
	for _, p := range nab.Profiles() {
		titles = append(titles, ">"+p.Name)
	}
	t := newTable(os.Stdout, titles...)
	row := func(detector, threshold string, scores map[string]float64) {
		if scores == nil {
			return
		}
		cells := []string{detector, threshold}
		for _, p := range nab.Profiles() {
			cells = append(cells, strconv.FormatFloat(scores[p.Name], 'f', 2, 64))
		}
		t.row(cells...)
	}
	row("sluice", "from the corpus", r.Ours.Corpus)
	row("sluice", "cross-validated", r.Ours.CrossValidated)
	row("sluice", "severity 50, fixed", r.Ours.Fixed)
	for i := range r.Reproduced {
		l := &r.Reproduced[i]
		row(l.Detector, "published figure", l.Published)
		row(l.Detector, "reproduced here", l.Corpus)
		row(l.Detector, "cross-validated", l.CrossValidated)
	}
	for i := range r.Published {
		row(r.Published[i].Detector, "published figure", r.Published[i].Published)
	}
	return t.flush()
}
