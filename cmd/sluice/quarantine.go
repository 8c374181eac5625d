package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
)

type quarantineCmd struct {
	List   quarantineListCmd   `cmd:"" help:"List messages that are no telemetry, newest first."`
	Replay quarantineReplayCmd `cmd:"" help:"Publish a message again, corrected if a file is given."`
	Drop   quarantineDropCmd   `cmd:"" help:"Remove messages for good."`
}

type quarantineListCmd struct {
	apiFlag
	Device string `help:"Only of this device."`
	Limit  int    `default:"100" help:"At most; 0: all."`
	JSON   bool   `name:"json" help:"Print JSON, one message a line, with the whole payload."`
}

// Run implements kong.
func (c *quarantineListCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		t := newTable(os.Stdout, "ID", "RECEIVED", "DEVICE", "REASON", "PAYLOAD")
		n := 0
		for q, err := range cl.Quarantine(ctx, client.ListQuery{Device: c.Device}) {
			if err != nil {
				return err
			}
			if n++; c.Limit > 0 && n > c.Limit {
				fmt.Fprintln(os.Stderr, "there are more: --limit 0 shows all")
				break
			}
			if c.JSON {
				if err := printLine(os.Stdout, q); err != nil {
					return err
				}
				continue
			}
			t.row(q.ID, q.Received.String(), q.Device, q.Reason, excerpt(q.Payload))
		}
		if c.JSON {
			return nil
		}
		return t.flush()
	})
}

// excerptRunes keeps a table row on a wide terminal.
const excerptRunes = 60

// excerpt is the beginning of a payload in one printable line.
func excerpt(b []byte) string {
	if !utf8.Valid(b) {
		return fmt.Sprintf("%d bytes that are not text", len(b))
	}
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, string(b))
	if utf8.RuneCountInString(s) > excerptRunes {
		return string([]rune(s)[:excerptRunes-3]) + "..."
	}
	return s
}

type quarantineReplayCmd struct {
	apiFlag
	ID      string `arg:"" help:"Id of the message, see list."`
	Payload string `placeholder:"FILE" help:"Publish the content of this file in its place; - is standard input."`
}

// Run implements kong.
func (c *quarantineReplayCmd) Run(ctx context.Context) error {
	var payload []byte
	if c.Payload != "" {
		b, err := readAll(c.Payload)
		if err != nil {
			return err
		}
		if payload = b; len(b) == 0 {
			return errors.New("payload is empty: give the corrected message, or leave --payload out")
		}
	}
	return c.with(func(cl *client.Client) error {
		counts, err := cl.Replay(ctx, c.ID, payload)
		if err != nil {
			return err
		}
		return replayed(os.Stdout, c.ID, &counts)
	})
}

func readAll(path string) ([]byte, error) {
	if path == "-" {
		b, err := io.ReadAll(os.Stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return b, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read payload: %w", err)
	}
	return b, nil
}

// replayed is an error when the message stays in quarantine.
func replayed(w io.Writer, id string, c *api.Counts) error {
	if c.Quarantined+c.Refused+c.Unknown > 0 {
		reason := "its outcome is not known"
		if len(c.Errors) > 0 {
			reason = c.Errors[0].Reason
		}
		return fmt.Errorf("%s stays in quarantine: %s: correct it with --payload", id, reason)
	}
	_, err := fmt.Fprintf(w, "%s published: %d applied, %d known already\n", id, c.Applied, c.Duplicate)
	return err
}

type quarantineDropCmd struct {
	apiFlag
	ID []string `arg:"" help:"Ids of the messages, see list."`
}

// Run implements kong.
func (c *quarantineDropCmd) Run(ctx context.Context) error {
	return c.with(func(cl *client.Client) error {
		for _, id := range c.ID {
			if err := cl.Drop(ctx, id); err != nil {
				return fmt.Errorf("drop %s: %w", id, err)
			}
			fmt.Println(id, "dropped")
		}
		return nil
	})
}
