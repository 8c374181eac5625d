// Command sluice is the whole of Sluice in one binary: a node, a local cluster
// for development, and the clients of both.
package main
