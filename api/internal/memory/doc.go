// Package memory is a cluster of one process without shards, log or network: it
// fulfils the interfaces of package api so that its server and its client can be
// tested against each other. It keeps to their contracts (order, duplicates,
// limits, errors) and lets a test take over single answers through Hooks.
package memory
