package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/internal/obs"
)

type deadletterCmd struct {
	List   deadletterListCmd   `cmd:"" help:"List rows that the database refused, newest first."`
	Show   deadletterShowCmd   `cmd:"" help:"Print one of them as JSON, with the message that it was published in."`
	Replay deadletterReplayCmd `cmd:"" help:"Store refused rows after all, once the database takes them."`
	Drop   deadletterDropCmd   `cmd:"" help:"Remove refused rows for good."`
}

type deadletterListCmd struct {
	apiFlag
	Device string `help:"Only of this device."`
	Limit  int    `default:"100" help:"At most; 0: all."`
	JSON   bool   `name:"json" help:"Print JSON, one row a line, with all of its content."`
}

// Run implements kong.
func (c *deadletterListCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		t := newTable(os.Stdout, "ID", "CREATED", "KIND", "DEVICE", "SQLSTATE", "REASON", "CONTENT")
		n := 0
		for l, err := range cl.DeadLetters(ctx, client.ListQuery{Device: c.Device}) {
			if err != nil {
				return err
			}
			if n++; c.Limit > 0 && n > c.Limit {
				fmt.Fprintln(os.Stderr, "there are more: --limit 0 shows all")
				break
			}
			if c.JSON {
				if err := printLine(os.Stdout, l); err != nil {
					return err
				}
				continue
			}
			t.row(strconv.FormatInt(l.ID, 10), l.Created.String(), l.Kind, l.Device, l.SQLState, obs.OneLine(l.Reason), excerpt(l.Content))
		}
		if c.JSON {
			return nil
		}
		return t.flush()
	})
}

type deadletterShowCmd struct {
	apiFlag
	ID int64 `arg:"" help:"Id of the row, see list."`
}

// Run implements kong.
func (c *deadletterShowCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		l, err := cl.DeadLetter(ctx, c.ID)
		if err != nil {
			return err
		}
		return printLine(os.Stdout, l)
	})
}

type deadletterReplayCmd struct {
	apiFlag
	ID     []int64 `arg:"" optional:"" help:"Ids of the rows, see list."`
	All    bool    `help:"All of them; those that the database refuses still stay."`
	Device string  `help:"With --all: only of this device."`
}

// Run implements kong.
func (c *deadletterReplayCmd) Run(ctx context.Context) error {
	if c.All == (len(c.ID) > 0) {
		return errors.New("name the rows to replay, or give --all")
	}
	return c.with(func(cl *client.Client) error {
		if !c.All {
			for _, id := range c.ID {
				if err := cl.ReplayDeadLetter(ctx, id); err != nil {
					return fmt.Errorf("replay %d: %w", id, err)
				}
				fmt.Println(id, "stored")
			}
			return nil
		}
		stored, refused := 0, 0
		for l, err := range cl.DeadLetters(ctx, client.ListQuery{Device: c.Device}) {
			if err != nil {
				return err
			}
			switch err := cl.ReplayDeadLetter(ctx, l.ID); {
			case err == nil:
				stored++
			case errors.Is(err, api.ErrConflict):
				refused++
			default:
				return fmt.Errorf("replay %d: %w", l.ID, err)
			}
		}
		fmt.Printf("%d stored, %d refused still\n", stored, refused)
		return nil
	})
}

type deadletterDropCmd struct {
	apiFlag
	ID []int64 `arg:"" help:"Ids of the rows, see list."`
}

// Run implements kong.
func (c *deadletterDropCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		for _, id := range c.ID {
			if err := cl.DropDeadLetter(ctx, id); err != nil {
				return fmt.Errorf("drop %d: %w", id, err)
			}
			fmt.Println(id, "dropped")
		}
		return nil
	})
}
