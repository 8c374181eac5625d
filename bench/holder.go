package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Holder is a crowd in a process of its own: one process can open only so many files.
type Holder struct {
	Addr    string
	Clients int
	Prefix  string // of client ids
	Source  int    // last byte of the first address 127.0.0.x they come from
}

const holderReady = "connected"

// RunHolder connects the clients, with durable sessions and a subscription each, says so
// on out, and lets them go when in ends.
func RunHolder(ctx context.Context, h Holder, in io.Reader, out io.Writer) error {
	all := newCrowd(h.Prefix, h.Clients, true, h.Source)
	defer all.leave()
	err := all.each(ctx, func(m *member) error {
		if _, err := m.connect(ctx, h.Addr); err != nil {
			return err
		}
		return m.subscribe()
	})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, holderReady); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { // ends with in, at the latest with the process
		_, err := io.Copy(io.Discard, in)
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

// holder is the process.
type holder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// startHolder runs a holder and waits until its clients are connected.
func startHolder(ctx context.Context, binary string, h Holder) (*holder, error) {
	cmd := exec.CommandContext(ctx, binary, "bench", "hold", "--addr", h.Addr, "--clients", strconv.Itoa(h.Clients), "--prefix", h.Prefix, "--source", strconv.Itoa(h.Source))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start clients of %s: %w", h.Addr, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start clients of %s: %w", h.Addr, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start clients of %s: %w", h.Addr, err)
	}
	p := &holder{cmd: cmd, in: in}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != holderReady {
		return nil, errors.Join(fmt.Errorf("clients of %s are not connected: %q", h.Addr, line), err, p.stop())
	}
	return p, nil
}

// stop lets the clients go. A process that has ended with an error has said why.
func (p *holder) stop() error {
	err := p.in.Close()
	late := time.AfterFunc(drainMax, func() { _ = p.cmd.Process.Kill() }) // it hangs: nothing depends on it
	defer late.Stop()
	return errors.Join(err, p.cmd.Wait())
}
