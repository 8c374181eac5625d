package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-iot/sluice/bench/faults/disk"
	"github.com/sluice-iot/sluice/bench/faults/zones"
)

// binary is the sluice executable, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sluice-faults-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "sluice")
	out, err := exec.Command("go", "build", "-o", binary, "github.com/sluice-iot/sluice/cmd/sluice").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build sluice: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir) // of a temporary directory
	os.Exit(code)
}

// subset is what fits into every run of the tests: one fault of each kind. make
// faults runs all of them.
var subset = []string{"F1b", "F3", "F4", "F6a", "F8", "F11", "F13a", "F13d", "F17c", "F18"}

const subsetSeed = 11

// smallLoad leaves room on a machine that runs other tests too.
var smallLoad = Load{Timed: 8, Untimed: 4, Posters: 2, Probes: 3}

func TestFaultsLoseNothingAndStoreNothingTwice(t *testing.T) {
	if testing.Short() {
		t.Skip("faults take minutes")
	}
	for _, f := range All() {
		if !contains(subset, f.ID) {
			continue
		}
		t.Run(f.ID, func(t *testing.T) {
			survive(t, f, subsetSeed)
		})
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func survive(t *testing.T, f *Fault, seed uint64) {
	t.Helper()
	res, err := Do(t.Context(), Config{Binary: binary, Dir: t.TempDir(), Seed: seed, Load: smallLoad, Progress: t.Output()}, f)
	if errors.Is(err, disk.ErrUnavailable) || errors.Is(err, zones.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d: %d acknowledged, %d stored, rate back after %v, %s", seed, res.Verdict.Acked, res.Verdict.Stored, res.Back, res.Note)
	if !res.Passed() {
		t.Errorf("%s with seed %d:\n%s\n%s", f.ID, seed, strings.Join(res.Failures, "\n"), lastWords(res.History))
	}
}

// TestAckBeforeFsyncIsNoticed is the part of make mutations that every run of
// the tests can afford: without it, no loss would also mean no sight.
func TestAckBeforeFsyncIsNoticed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program again")
	}
	broken := filepath.Join(t.TempDir(), "sluice")
	if out, err := exec.Command("go", "build", "-tags", "mutations", "-o", broken, "github.com/sluice-iot/sluice/cmd/sluice").CombinedOutput(); err != nil {
		t.Fatalf("build sluice with mutations: %v\n%s", err, out)
	}
	got, err := Catch(t.Context(), Config{Binary: broken, Dir: t.TempDir(), Seed: subsetSeed, Load: smallLoad, Progress: t.Output()}, Mutations()[0])
	if errors.Is(err, disk.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", got.Name, got.By)
	if !got.Found {
		t.Errorf("%s was not noticed", got.Name)
	}
}

// lastWords are the ends of the nodes' logs of a run that failed.
func lastWords(dir string) string {
	var b strings.Builder
	logs, err := filepath.Glob(filepath.Join(dir, "n*.log"))
	if err != nil {
		return err.Error()
	}
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fmt.Fprintf(&b, "%s ends:\n%s\n", filepath.Base(path), text[max(0, len(text)-3000):])
	}
	return b.String()
}
