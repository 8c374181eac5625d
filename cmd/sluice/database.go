package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/sluice-iot/sluice/node"
)

type databaseCmd struct {
	Migrate databaseMigrateCmd `cmd:"" help:"Make or update the tables and TimescaleDB's jobs, as their owner; for nodes with store.manual_migrations."`
}

type databaseMigrateCmd struct {
	File     string `arg:"" type:"path" help:"Configuration file (YAML) of a node."`
	Database string `help:"postgres:// URL of the owner; empty: store.database."`
}

// Run implements kong.
func (c *databaseMigrateCmd) Run(ctx context.Context) error {
	cfg, err := node.LoadConfig(c.File, os.Environ(), nil)
	if err != nil {
		return err
	}
	if c.Database != "" {
		cfg.Store.Database = c.Database
	}
	if cfg.Store.Database == "" {
		return errors.New("no database: set store.database, or name the owner's with --database")
	}
	if err := node.Migrate(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)), cfg); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	fmt.Println("the database is up to date")
	return nil
}
