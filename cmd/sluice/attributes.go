package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

type deviceAttributesCmd struct {
	Get attributesGetCmd `cmd:"" help:"Show the attributes of a device and their entity tag."`
	Set attributesSetCmd `cmd:"" help:"Change attributes of a device, or make a device that is not known."`
}

type attributesGetCmd struct {
	apiFlag
	ID   string `arg:"" help:"Device id."`
	JSON bool   `name:"json" help:"Print JSON, with the entity tag."`
}

// Run implements kong.
func (c *attributesGetCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		attributes, etag, err := cl.Attributes(ctx, c.ID)
		if err != nil {
			return err
		}
		return printAttributes(os.Stdout, c.JSON, attributes, etag)
	})
}

func printAttributes(w io.Writer, asJSON bool, attributes map[string]string, etag string) error {
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			ETag       string            `json:"etag"`
			Attributes map[string]string `json:"attributes"`
		}{etag, attributes})
	}
	t := newTable(w, "ATTRIBUTE", "VALUE")
	for _, k := range slices.Sorted(maps.Keys(attributes)) {
		t.row(k, attributes[k])
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nETag: %s\n", etag)
	return err
}

type attributesSetCmd struct {
	apiFlag
	ID      string   `arg:"" help:"Device id."`
	Pairs   []string `arg:"" optional:"" name:"key=value" help:"Attributes to set."`
	Remove  []string `placeholder:"KEY" help:"Attributes to remove."`
	Replace bool     `help:"Remove all attributes that are not named."`
	IfMatch string   `placeholder:"ETAG" help:"Only if the attributes still have this entity tag."`
	JSON    bool     `name:"json" help:"Print JSON, with the entity tag."`
}

// setAttemptsMax is how often a change is tried again because somebody else was
// quicker; each time somebody has got further.
const setAttemptsMax = 10

// Run implements kong.
func (c *attributesSetCmd) Run(ctx context.Context) error {
	change, err := c.change()
	if err != nil {
		return err
	}
	return c.with(func(cl *client.Client) error {
		for attempt := 1; ; attempt++ {
			attributes, etag, err := c.once(ctx, cl, change)
			if errors.Is(err, api.ErrPrecondition) && c.IfMatch == "" && attempt < setAttemptsMax {
				continue
			}
			if err != nil {
				return err
			}
			return printAttributes(os.Stdout, c.JSON, attributes, etag)
		}
	})
}

// change parses the arguments.
func (c *attributesSetCmd) change() (map[string]string, error) {
	out := map[string]string{}
	for _, p := range c.Pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%q is no attribute: write key=value", p)
		}
		out[k] = v
	}
	if len(c.Pairs)+len(c.Remove) == 0 && !c.Replace {
		return nil, errors.New("nothing to change: give key=value, --remove KEY, or --replace to remove all")
	}
	return out, nil
}

// once reads, changes and writes on the condition that nobody did in between.
func (c *attributesSetCmd) once(ctx context.Context, cl *client.Client, change map[string]string) (map[string]string, string, error) {
	attributes, etag, err := cl.Attributes(ctx, c.ID)
	when := client.Precondition{IfMatch: etag}
	if errors.Is(err, api.ErrNotFound) {
		when, err = client.Precondition{IfNoneMatch: "*"}, nil
	}
	if err != nil {
		return nil, "", err
	}
	if c.IfMatch != "" {
		when = client.Precondition{IfMatch: c.IfMatch}
	}
	if c.Replace || attributes == nil {
		attributes = map[string]string{}
	}
	maps.Copy(attributes, change)
	for _, k := range c.Remove {
		delete(attributes, k)
	}
	etag, _, err = cl.PutAttributes(ctx, c.ID, attributes, when)
	return attributes, etag, err
}
