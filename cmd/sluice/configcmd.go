package main

import (
	"fmt"
	"net/url"
	"os"

	"github.com/goccy/go-yaml"
)

type configCmd struct {
	Validate configValidateCmd `cmd:"" help:"Check a configuration file, environment included."`
	Print    configPrintCmd    `cmd:"" help:"Print what a node would use: file, environment and defaults, secrets hidden."`
}

type configValidateCmd struct {
	File string `arg:"" type:"path" help:"Configuration file (YAML)."`
}

// Run implements kong.
func (c *configValidateCmd) Run() error {
	if _, err := loadConfig(c.File, os.Environ()); err != nil {
		return err
	}
	fmt.Println(c.File, "is valid")
	return nil
}

type configPrintCmd struct {
	File string `arg:"" optional:"" type:"path" help:"Configuration file (YAML); without it: all keys with their defaults."`
}

// Run implements kong.
func (c *configPrintCmd) Run() error {
	cfg := defaultConfig()
	if c.File == "" {
		cfg.defaults()
	} else {
		var err error
		if cfg, err = loadConfig(c.File, os.Environ()); err != nil {
			return err
		}
	}
	hideSecrets(&cfg)
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	_, err = os.Stdout.Write(b)
	return err
}

// hidden stands for a secret that is set.
const hidden = "(hidden)"

func hideSecrets(cfg *Config) {
	if cfg.Cluster.Secret != "" {
		cfg.Cluster.Secret = hidden
	}
	if cfg.Store.Database == "" {
		return
	}
	u, err := url.Parse(cfg.Store.Database)
	if err != nil {
		cfg.Store.Database = hidden // it may hold a password somewhere
		return
	}
	q := u.Query()
	if q.Has("password") {
		q.Set("password", "xxxxx")
		u.RawQuery = q.Encode()
	}
	cfg.Store.Database = u.Redacted()
}
