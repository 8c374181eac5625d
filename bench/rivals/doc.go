// Package rivals measures parts of Sluice against the libraries that do the same
// elsewhere, under the same load on the same machine. It is a module of its own,
// so that nobody who builds Sluice needs them; it holds benchmarks only.
//
//	cd bench/rivals && go test -bench . -benchtime 100000x -count 3
package rivals
