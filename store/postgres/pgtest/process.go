package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Restart starts the server if it does not run, and returns when it answers.
func (s *Server) Restart() error {
	if s.cmd != nil {
		if err := s.Stop(); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the server's log: %w", err)
	}
	cmd := s.command(context.Background(), "postgres", "-D", s.data())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Setpgid = true // Ctrl-C at the tests' terminal is not for the server
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start the server: %w", err), log.Close())
	}
	s.cmd, s.log = cmd, log
	if err := s.answers(); err != nil {
		tail, _ := os.ReadFile(log.Name())
		return errors.Join(fmt.Errorf("start the server: %w\n%s", err, tail), s.Kill())
	}
	return nil
}

// answers waits until the server takes connections.
func (s *Server) answers() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		c, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			return c.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Save keeps a copy of all databases as they are now, as a replica that gets
// nothing from now on would have them. Connections are cut.
func (s *Server) Save() error {
	if err := s.Stop(); err != nil {
		return err
	}
	if err := os.RemoveAll(s.saved()); err != nil {
		return fmt.Errorf("remove the older copy: %w", err)
	}
	cmd := s.command(context.Background(), "postgres")
	cmd.Path, cmd.Args = "/bin/cp", []string{"cp", "-a", s.data(), s.saved()}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the server's data: %w: %s", err, bytes.TrimSpace(out))
	}
	return s.Restart()
}

// FailOver kills the server and starts the copy that Save made in its place.
func (s *Server) FailOver() error {
	if err := s.Kill(); err != nil {
		return err
	}
	if err := os.RemoveAll(s.data()); err != nil {
		return fmt.Errorf("remove the server's data: %w", err)
	}
	if err := os.Rename(s.saved(), s.data()); err != nil {
		return fmt.Errorf("put the copy in its place: %w", err)
	}
	return s.Restart()
}

func (s *Server) saved() string { return filepath.Join(s.dir, "saved") }

// Stop ends the server in order: it closes connections at once and writes its
// checkpoint ("fast" shutdown).
func (s *Server) Stop() error { return s.end(syscall.SIGINT, false) }

// Kill ends every process of the server with SIGKILL, as a power loss would (but
// for what the operating system still holds).
func (s *Server) Kill() error { return s.end(syscall.SIGKILL, true) }

func (s *Server) end(sig syscall.Signal, all bool) error {
	if s.cmd == nil {
		return nil
	}
	children := s.children()
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal the server: %w", err)
	}
	if all {
		for _, pid := range children {
			_ = syscall.Kill(pid, sig) // it may have ended with its parent
		}
	}
	var exit error
	if err := s.cmd.Wait(); err != nil && !all {
		exit = fmt.Errorf("stop the server: %w", err)
	}
	for _, pid := range children { // the next start waits for none of them
		for alive(pid) {
			time.Sleep(time.Millisecond)
		}
	}
	s.cmd = nil
	return errors.Join(exit, s.log.Close())
}

// Pause stops every process of the server (SIGSTOP) until Resume: connections
// stay open and nothing answers.
func (s *Server) Pause() { s.signalAll(syscall.SIGSTOP) }

// Resume continues a paused server.
func (s *Server) Resume() { s.signalAll(syscall.SIGCONT) }

func (s *Server) signalAll(sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig)
	for _, pid := range s.children() {
		_ = syscall.Kill(pid, sig)
	}
}

// children lists the postmaster's child processes.
func (s *Server) children() []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	var out []int
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		if _, parent, ok := stat(pid); ok && parent == s.cmd.Process.Pid {
			out = append(out, pid)
		}
	}
	return out
}

// alive reports whether a process can still do something: one that nobody has
// waited for can not.
func alive(pid int) bool {
	state, _, ok := stat(pid)
	return ok && state != 'Z' && state != 'X'
}

// stat reads /proc/PID/stat: pid (name) state ppid ...; the name may hold
// anything.
func stat(pid int) (state byte, parent int, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, false
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent, err == nil
}

// Close ends the server and removes its directory.
func (s *Server) Close() error {
	return errors.Join(s.Kill(), os.RemoveAll(s.dir))
}
