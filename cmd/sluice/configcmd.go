package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/goccy/go-yaml"

	"github.com/sluice-iot/sluice/node"
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
	if _, err := node.LoadConfig(path, os.Environ(), c.Set); err != nil {
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
	cfg := node.Defaults()
	if path != "" {
		if cfg, err = node.LoadConfig(path, os.Environ(), c.Set); err != nil {
			return err
		}
	}
	cfg.HideSecrets()
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	_, err = os.Stdout.Write(b)
	return err
}
