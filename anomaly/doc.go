// Package anomaly scores readings as they arrive: for every reading of a series
// (one sensor of one device) a calibrated score, the expected value and its
// band, the cause, and the alert that opens, gets worse and closes.
//
// It is a pure function: Step takes a State and a reading, changes the State and
// returns a Verdict. Nothing else enters: no clock, no randomness, no map, and
// arithmetic that is the same to the last bit on every CPU, because every replica
// of a shard runs it on its own and their states must stay equal. Version names
// the arithmetic.
//
// The package owns no goroutine, file or memory. A State is a plain value of at
// most 512 bytes without pointers, so that millions of them in a slab cost the
// garbage collector nothing; AppendState and DecodeState carry it in snapshots
// (FORMAT.md). A Detector is immutable and shared; one State must not be stepped
// by two goroutines at once.
//
// The promise to operators is the rate of false alarms: on stationary data a
// device raises about Params.AlarmsPerDeviceMonth of them in 30 days, whatever
// the distribution of its noise, its cadence, the number of its sensors
// (State.SetSensors) and how far they move as one. DESIGN.md says how, and what
// was rejected.
//
// What it does not do: notice that readings are missing (that needs the clock of
// whoever has one; State.Cadence gives the usual step), compare devices, store or
// deliver alerts. Add, Finish and DeviceState look at the sensors of a device together.
//
//	d := anomaly.New(anomaly.DefaultParams())
//	var s anomaly.State
//	s.SetSensors(4)
//	v := d.Step(&s, reading.Time, reading.Value)
//	if v.Alert == anomaly.Opened { notify(v.Cause, v.Severity) }
package anomaly
