package postgres

import (
	"context"
	"strings"
	"testing"
)

// TestServerWithoutConnectionsIsAClearAlarm: what a node shows names the remedy,
// and rows go in as soon as there is a connection.
func TestServerWithoutConnectionsIsAClearAlarm(t *testing.T) {
	s := server(t)
	url := s.Database(t)
	write(t, open(t, config(url)), fleet(1, 0, 7, 2, 2, t0)) // migrated
	s.Exec(t, url, "create role crowded login connection limit 0")
	s.Exec(t, url, "grant all on all tables in schema public to crowded; grant all on all sequences in schema public to crowded; grant all on schema public to crowded")
	cfg := config(strings.Replace(url, "postgres@", "crowded@", 1))
	if cfg.URL == url {
		t.Fatalf("the server's role is not postgres: %s", url)
	}
	cfg.ManualMigrations = true
	db := open(t, cfg)
	eventually(t, "an alarm that names the remedy", func() bool {
		err := db.Health()
		return err != nil && strings.Contains(err.Error(), "53300") && strings.Contains(err.Error(), "max_connections")
	})
	s.Exec(t, url, "alter role crowded connection limit 4")
	b := fleet(1, 7, 14, 2, 2, t0+1_000_000)
	eventually(t, "rows go in", func() bool { return db.Write(context.Background(), b) == nil })
}
