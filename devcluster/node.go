package devcluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Node is one process of the cluster.
type Node struct {
	NodeInfo
	cluster *Cluster

	cmd      *exec.Cmd
	done     chan struct{} // closed when the process has ended
	expected bool          // its end was asked for
	err      error         // how it ended
}

// Start starts the process, which must not be running.
func (n *Node) Start() error {
	c := n.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(c.opt.Dir, n.ID+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log of %s: %w", n.ID, err)
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	cmd := exec.Command(n.Cmd[0], n.Cmd[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), c.opt.Environ...)
	// A process group of its own: Ctrl-C in the terminal reaches only us, and we
	// stop the nodes in the right order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.ID, err)
	}
	n.cmd, n.done, n.expected, n.PID = cmd, make(chan struct{}), false, cmd.Process.Pid
	go n.wait(cmd, n.done)
	return c.save()
}

// wait is the only one to reap the process.
func (n *Node) wait(cmd *exec.Cmd, done chan struct{}) {
	err := cmd.Wait()
	c := n.cluster
	c.mu.Lock()
	n.err = err
	expected := n.expected
	c.mu.Unlock()
	close(done)
	if !expected {
		c.exited <- n
	}
}

// Running reports whether the process we started still runs.
func (n *Node) Running() bool {
	n.cluster.mu.Lock()
	done := n.done
	n.cluster.mu.Unlock()
	if done == nil {
		return false
	}
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process we started.
func (n *Node) Signal(s syscall.Signal) error {
	n.cluster.mu.Lock()
	cmd := n.cmd
	n.cluster.mu.Unlock()
	if cmd == nil || cmd.Process == nil {
		return fmt.Errorf("signal %s: it was never started", n.ID)
	}
	if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", n.ID, err)
	}
	return nil
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (n *Node) Kill() error {
	n.expect()
	if err := n.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-n.done
	return nil
}

// Terminate ends the process with SIGTERM and waits until it is gone; one that
// takes too long is killed, and one that ends badly is an error.
func (n *Node) Terminate() error { return n.terminate(stopMax) }

// expect says that the end of the process is wanted.
func (n *Node) expect() {
	n.cluster.mu.Lock()
	n.expected = true
	n.cluster.mu.Unlock()
}

// terminate sends SIGTERM, waits, and kills what has not ended by then.
func (n *Node) terminate(within time.Duration) error {
	if !n.Running() {
		return nil
	}
	n.expect()
	if err := n.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-n.done:
	case <-time.After(within):
		return errors.Join(fmt.Errorf("%s has not stopped within %v, killed", n.ID, within), n.Kill())
	}
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	if n.err != nil {
		return fmt.Errorf("%s stopped with an error, see %s.log: %w", n.ID, n.ID, n.err)
	}
	return nil
}
