// Package synth makes telemetry with labelled faults: devices as fleets have
// them (temperatures, machine loads, meters, duty cycles, pressures, tanks,
// event counts; cadences from a minute to a quarter of an hour, jitter, gaps,
// correlated sensors) and the ways in which they break. It is the detector's
// development set: what it should find, how soon, and how often it may cry wolf.
//
// Generate is a pure function of its arguments: one seed, one device, on every
// machine. Evaluate runs the frozen detector over devices of many seeds.
//
//	d := synth.Generate(7, synth.Drift)
//	r := synth.Evaluate(anomaly.DefaultParams(), 1, 40)
package synth
