// Package pgtest runs a real PostgreSQL server for tests: the one of the
// operating system's package, in a temporary directory, on a free port of
// 127.0.0.1, as an unprivileged user even when the tests run as root (PostgreSQL
// refuses root).
//
// A Server owns its processes and its directory; Close ends both.
//
//	s := pgtest.Start(t, pgtest.Options{}) // skips the test where PostgreSQL is absent
//	db, err := postgres.Open(logger, nil, postgres.Config{URL: s.Database(t), Cluster: id})
//	s.Kill()              // kill -9 of the whole server
//	err = s.Restart()     // recovers from its log
package pgtest
