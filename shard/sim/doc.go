// Package sim holds the simulation of a shard's replicas: hosts with the real
// ingest path, raft, state machine, transport and log, on a simulated network
// (internal/simnet) and disks that lose what was not synced (internal/vfs), in
// the simulated time of testing/synctest. A minute of partitions and power
// losses takes a few seconds, and its schedule follows from a seed.
//
// It has tests only. What is simulated and what is not stands with the type
// world in sim_test.go.
package sim
