// Package e2e holds the tests that run the real binary as real processes on
// loopback and look at it from outside, as a user would. It exports nothing.
package e2e
