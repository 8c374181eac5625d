package devcluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/api/client"
	"github.com/sluice-iot/sluice/telemetry"
)

const (
	poll     = 50 * time.Millisecond
	startMax = time.Minute      // until every node answers, on a busy machine
	drainMax = 12 * time.Second // a little more than a node's own bound
	stopMax  = 40 * time.Second // a node needs half of it at most where the machine is its own
)

// Client talks to a node.
func (n *Node) Client() (*client.Client, error) {
	return client.New(client.Config{URL: "http://" + n.HTTP})
}

// initialise waits until all nodes answer and know each other, and makes the
// cluster if there is none yet.
func (c *Cluster) initialise(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	cl, err := c.nodes[0].Client()
	if err != nil {
		return err
	}
	for {
		st, err := cl.Status(ctx)
		switch {
		case err == nil && st.ClusterID != "":
			return nil
		case err == nil && c.allAlive(st.Nodes):
			_, err := cl.Init(ctx, api.InitRequest{Shards: c.opt.Shards, Replicas: c.opt.Replicas})
			if err != nil && !errors.Is(err, api.ErrConflict) { // a conflict: it exists, a node has just told it
				return fmt.Errorf("initialise cluster: %w", err)
			}
			return nil
		}
		if dead := c.firstDead(); dead != nil {
			return fmt.Errorf("%s does not start: %s", dead.ID, dead.lastWords())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nodes do not find each other within %v, see %s/n*.log: %w", startMax, c.opt.Dir, ctx.Err())
		case <-time.After(poll):
		}
	}
}

func (c *Cluster) allAlive(nodes []api.Node) bool {
	alive := 0
	for _, n := range nodes {
		if n.State == api.NodeAlive {
			alive++
		}
	}
	return alive == len(c.nodes)
}

func (c *Cluster) firstDead() *Node {
	for _, n := range c.nodes {
		if !n.Running() {
			return n
		}
	}
	return nil
}

// lastWords is the last line of a node's log.
func (n *Node) lastWords() string {
	f, err := os.Open(filepath.Join(n.cluster.opt.Dir, n.ID+".log"))
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }() // read only
	last := "(it said nothing)"
	for sc := bufio.NewScanner(f); sc.Scan(); {
		last = sc.Text()
	}
	return last
}

// WaitReady waits until every running node is ready: all shards have leaders.
func (c *Cluster) WaitReady(ctx context.Context) error {
	for _, n := range c.nodes {
		if n.Running() {
			if err := n.WaitReady(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// WaitReady waits until /readyz of this node is 200.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		status, text, err := n.readyz(ctx)
		if status == http.StatusOK {
			return nil
		}
		if !n.Running() {
			return fmt.Errorf("%s has ended: %s", n.ID, n.lastWords())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %s: %w", n.ID, text, errors.Join(err, ctx.Err()))
		case <-time.After(poll):
		}
	}
}

func (n *Node) readyz(ctx context.Context) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/readyz", nil)
	if err != nil {
		return 0, "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error(), err
	}
	defer func() { _ = res.Body.Close() }() // read below as far as it matters
	b := make([]byte, 1024)
	k, _ := res.Body.Read(b) // the text is only for people
	return res.StatusCode, string(b[:k]), nil
}

// Stop drains every node, then ends all of them, those started again by hand
// included. A node that is dead already is no error.
func (c *Cluster) Stop(ctx context.Context) error {
	c.drain(ctx)
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() {
			if n.Running() {
				errs[i] = n.terminate(stopMax)
			} else {
				errs[i] = n.terminateForeign(stopMax)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// drain asks every node to answer what is in flight and to let its clients go,
// and waits until all have done so: a node that leaves earlier would take the
// quorum of the others' last publishes with it.
func (c *Cluster) drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainMax)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		wg.Go(func() {
			if err := n.drain(ctx); err != nil {
				c.logger.Debug("node not drained", "node", n.ID, "err", err)
			}
		})
	}
	wg.Wait()
}

func (n *Node) drain(ctx context.Context) error {
	if status, _, err := n.readyz(ctx); status == 0 {
		return err // not there: nothing to drain
	}
	cl, err := n.Client()
	if err != nil {
		return err
	}
	if err := cl.Drain(ctx, telemetry.NodeID(n.ID)); err != nil {
		return err
	}
	for {
		_, text, err := n.readyz(ctx)
		if err != nil || strings.Contains(text, "drained") {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(poll):
		}
	}
}

// terminateForeign stops a node that somebody started again by hand: whoever
// holds the lock of its data directory.
func (n *Node) terminateForeign(within time.Duration) error {
	pid, held := n.lockHolder()
	if !held {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s (pid %d): %w", n.ID, pid, err)
	}
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(poll) {
		if _, held := n.lockHolder(); !held {
			return nil
		}
	}
	return fmt.Errorf("%s (pid %d) has not stopped within %v", n.ID, pid, within)
}

// lockHolder reads the pid in the data directory's lock file, and whether the
// lock is held.
func (n *Node) lockHolder() (int, bool) {
	f, err := os.Open(filepath.Join(n.Data, "LOCK"))
	if err != nil {
		return 0, false
	}
	defer func() { _ = f.Close() }() // releases the probe's lock
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
		return 0, false
	}
	b := make([]byte, 32)
	k, _ := f.Read(b) // an empty file gives no pid below
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:k])))
	return pid, err == nil && pid > 1
}
