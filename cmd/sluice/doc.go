// Command sluice is the whole of Sluice in one binary: a node (package node), a
// local cluster for development (package devcluster), and the commands of operators
// and users, which ask a node (package api/client) or need none: detect, wal, bench.
// Every command is a struct with its flags and a Run, in the file of its name.
package main
