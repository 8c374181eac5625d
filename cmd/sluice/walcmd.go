package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/sluice-iot/sluice/node"
	"github.com/sluice-iot/sluice/wal"
)

type walCmd struct {
	Verify walVerifyCmd `cmd:"" help:"Check every record of a stopped node's log; fails on damage."`
	Stat   walStatCmd   `cmd:"" help:"Describe a stopped node's log."`
	Dump   walDumpCmd   `cmd:"" help:"Print the records of a stopped node's log."`
}

type walVerifyCmd struct {
	walKeys `embed:""`
	Dir     string `arg:"" type:"path" help:"Data directory of a node."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *walVerifyCmd) Run() error {
	keys, err := c.keys()
	if err != nil {
		return err
	}
	rep, err := wal.Verify(c.Dir, keys...)
	if err != nil && len(rep.Damage) == 0 {
		return err
	}
	if c.JSON {
		err = printJSON(os.Stdout, rep)
	} else {
		err = printReport(os.Stdout, &rep)
	}
	if n := len(rep.Damage); err == nil && n > 0 {
		return fmt.Errorf("log is damaged (%d found): see above where, and what to do", n)
	}
	return err
}

func printReport(w io.Writer, rep *wal.Report) error {
	for _, d := range rep.Damage {
		fmt.Fprintf(w, "DAMAGE %v\n", d)
	}
	printTorn(w, rep.Torn)
	if len(rep.Damage) > 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "%s: %d segments, %s records, %s live entries of %d groups: all good\n", rep.Dir, len(rep.Segments), count(rep.Records), count(rep.Entries), len(rep.Groups))
	return err
}

// printTorn explains an unfinished end, which is no damage.
func printTorn(w io.Writer, t *wal.Torn) {
	if t != nil {
		fmt.Fprintf(w, "unfinished write at the end of %s, byte %s: it was never acknowledged, the next start cuts it\n", t.Segment, count(t.Offset))
	}
}

type walStatCmd struct {
	walKeys `embed:""`
	Dir     string `arg:"" type:"path" help:"Data directory of a node."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

// Run implements kong.
func (c *walStatCmd) Run() error {
	keys, err := c.keys()
	if err != nil {
		return err
	}
	st, err := wal.Stat(c.Dir, keys...)
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(os.Stdout, st)
	}
	return printWALStats(os.Stdout, &st)
}

func printWALStats(w io.Writer, st *wal.Stats) error {
	fmt.Fprintf(w, "log of node %s in %s\n\n", st.Node, st.Dir)
	t := newTable(w, "SEGMENT", "STATE", ">SIZE", ">USED", ">LIVE", "CREATED", "KEY")
	for _, s := range st.Segments {
		created := "-"
		if s.Created.Unix() > 0 {
			created = s.Created.Format("2006-01-02T15:04:05Z")
		}
		key := s.Key
		if key == "" {
			key = "-"
		}
		t.row(s.Name, s.State, size(s.Bytes), size(s.Used), size(s.Live), created, key)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t = newTable(w, ">GROUP", ">FIRST", ">LAST", ">FLOOR", ">COMMIT", ">SIZE", "NOTE")
	for _, g := range st.Groups {
		note := ""
		switch {
		case g.ID == 0:
			note = "meta group"
		case g.Hidden:
			note = "deleted, kept for the floor"
		}
		t.row(strconv.Itoa(int(g.ID)), count(g.First), count(g.Last), count(g.Floor), count(g.Commit), size(g.Bytes), note)
	}
	if err := t.flush(); err != nil {
		return err
	}
	printTorn(w, st.Torn)
	return nil
}

type walDumpCmd struct {
	walKeys `embed:""`
	Dir     string  `arg:"" type:"path" help:"Data directory of a node."`
	Group   *uint32 `help:"Only this raft group: 0 is the meta group, shard s is group s+1."`
	From    uint64  `default:"0" help:"Smallest index."`
	To      uint64  `default:"0" help:"Largest index; 0: no end."`
	Data    bool    `help:"Print the bytes too."`
}

// Run implements kong.
func (c *walDumpCmd) Run() error {
	if c.To != 0 && c.To < c.From {
		return errors.New("to is smaller than from")
	}
	keys, err := c.keys()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	err = wal.Dump(out, c.Dir, wal.Filter{Group: c.Group, From: c.From, To: c.To, Data: c.Data}, keys...)
	return errors.Join(err, out.Flush())
}

// walKeys are the flags of commands that read a log.
type walKeys struct {
	KeyFile string `name:"key-file" type:"path" env:"SLUICE_WAL_ENCRYPTION_KEY_FILE" help:"Operator keys of an encrypted log; SLUICE_WAL_ENCRYPTION_KEY is another way."`
	Key     string `name:"key" hidden:"" env:"SLUICE_WAL_ENCRYPTION_KEY" help:"Operator keys, comma-separated."`
}

func (k *walKeys) keys() ([]wal.Key, error) {
	return (&node.EncryptionConfig{KeyFile: k.KeyFile, Key: k.Key}).Keys()
}
