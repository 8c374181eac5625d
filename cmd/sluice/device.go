package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

type deviceCmd struct {
	List       deviceListCmd       `cmd:"" help:"List the devices."`
	Show       deviceShowCmd       `cmd:"" help:"Show one device: attributes, latest readings, open anomalies."`
	Attributes deviceAttributesCmd `cmd:"" help:"Read and change the attributes of a device."`
}

type deviceListCmd struct {
	apiFlag
	Where string `placeholder:"EXPRESSION" help:"Only devices that this selects: attributes.model = \"x1\" and (last_seen < -1h or anomaly)."`
	Limit int    `default:"1000" help:"Devices at most; 0: all."`
	JSON  bool   `name:"json" help:"Print JSON, one device a line."`
}

// Run implements kong.
func (c *deviceListCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		t := newTable(os.Stdout, "DEVICE", "FIRST SEEN", "LAST SEEN", ">ATTRIBUTES")
		n := 0
		for d, err := range cl.Devices(ctx, c.Where) {
			if err != nil {
				return err
			}
			if n++; c.Limit > 0 && n > c.Limit {
				fmt.Fprintln(os.Stderr, "there are more: --limit 0 shows all")
				break
			}
			if c.JSON {
				if err := printLine(os.Stdout, d); err != nil {
					return err
				}
				continue
			}
			t.row(d.ID, d.FirstSeen.String(), d.LastSeen.String(), strconv.Itoa(len(d.Attributes)))
		}
		if c.JSON {
			return nil
		}
		return t.flush()
	})
}

type deviceShowCmd struct {
	apiFlag
	ID   string `arg:"" help:"Device id."`
	JSON bool   `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *deviceShowCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		d, err := cl.Device(ctx, c.ID)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(os.Stdout, d)
		}
		return printDevice(os.Stdout, &d)
	})
}

func printDevice(w io.Writer, d *api.Device) error {
	fmt.Fprintf(w, "%s  first seen %s, last seen %s\n", d.ID, d.FirstSeen, d.LastSeen)
	if len(d.Attributes) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "ATTRIBUTE", "VALUE")
		for _, k := range slices.Sorted(maps.Keys(d.Attributes)) {
			t.row(k, d.Attributes[k])
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	p := readingPrinters["table"](w).(*tablePrinter)
	for i := range d.Latest {
		if err := p.reading(&d.Latest[i]); err != nil {
			return err
		}
	}
	if err := p.end(); err != nil || len(d.Anomalies) == 0 {
		return err
	}
	fmt.Fprintln(w)
	t := anomalyTable(w)
	for i := range d.Anomalies {
		t.row(anomalyRow(&d.Anomalies[i])...)
	}
	return t.flush()
}
