package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"

	"github.com/goccy/go-yaml"
)

type configCmd struct {
	Validate configValidateCmd `cmd:"" help:"Check a configuration file, environment included."`
	Print    configPrintCmd    `cmd:"" help:"Print what a node would use: file, environment and defaults, secrets hidden."`
}

// configFile is named as an argument or by the flag that sluice node has.
type configFile struct {
	File   string   `arg:"" optional:"" type:"path" help:"Configuration file (YAML)."`
	Config string   `type:"path" placeholder:"FILE" help:"The same as the argument."`
	Set    []string `sep:"none" placeholder:"KEY=VALUE" help:"Override a key of the file, mqtt.listen=127.0.0.1:1883 for example; may be repeated."`
}

func (f *configFile) path() (string, error) {
	if f.File != "" && f.Config != "" && f.File != f.Config {
		return "", fmt.Errorf("two configuration files, %s and %s: name one", f.File, f.Config)
	}
	return cmp.Or(f.File, f.Config), nil
}

type configValidateCmd struct{ configFile }

// Run implements kong.
func (c *configValidateCmd) Run() error {
	path, err := c.path()
	if err != nil {
		return err
	}
	if path == "" {
		return errors.New("no configuration file is named: sluice config validate FILE")
	}
	if _, err := loadConfig(path, os.Environ(), c.Set); err != nil {
		return err
	}
	fmt.Println(path, "is valid")
	return nil
}

type configPrintCmd struct{ configFile }

// Help implements kong.
func (configPrintCmd) Help() string { return "Without a file: all keys with their defaults." }

// Run implements kong.
func (c *configPrintCmd) Run() error {
	path, err := c.path()
	if err != nil {
		return err
	}
	cfg := defaultConfig()
	if path == "" {
		cfg.defaults()
	} else if cfg, err = loadConfig(path, os.Environ(), c.Set); err != nil {
		return err
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
	if cfg.Archive.SecretKey != "" {
		cfg.Archive.SecretKey = hidden
	}
	if cfg.WAL.Encryption.Key != "" {
		cfg.WAL.Encryption.Key = hidden
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
