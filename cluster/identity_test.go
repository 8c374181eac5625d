package cluster_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/telemetry"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SLUICE_TEST_LOCK_DIR"); dir != "" {
		holdDirectory(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// holdDirectory is the second process of the lock test: it opens the directory,
// says so, and keeps it until its standard input ends.
func holdDirectory(dir string) {
	id, err := cluster.LoadOrCreateIdentity(dir, "n0", "a")
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString("held\n")
	_, _ = os.Stdin.Read(make([]byte, 1))
	_ = id.Close()
}

func open(t *testing.T, dir string) *cluster.Identity {
	t.Helper()
	id, err := cluster.LoadOrCreateIdentity(dir, "n0", "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = id.Close() })
	return id
}

func TestIdentityIsKeptOverRestarts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "data")
	id := open(t, dir)
	peer := id.Peer()
	if node, inc, err := cluster.SplitPeer(peer); err != nil || node != "n0" || inc != id.Incarnation() {
		t.Fatalf("peer %q splits into %q, %q, %v", peer, node, inc, err)
	}
	if id.ClusterID() != "" {
		t.Fatalf("new directory is of cluster %q", id.ClusterID())
	}
	if err := id.AdoptCluster("C1"); err != nil {
		t.Fatal(err)
	}
	if err := id.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if again.Peer() != peer || again.ClusterID() != "C1" || again.Zone() != "a" || again.Node() != "n0" || again.Dir() != dir {
		t.Fatalf("reopened as %s of cluster %q in %s", again.Peer(), again.ClusterID(), again.Zone())
	}
}

func TestEmptiedDirectoryIsANewIncarnation(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	peer := first.Peer()
	_ = first.Close()
	if err := os.Remove(filepath.Join(dir, "node.json")); err != nil {
		t.Fatal(err)
	}
	if second := open(t, dir); second.Peer() == peer {
		t.Fatalf("emptied directory is still %s", peer)
	}
}

func TestForeignDirectoriesAreRefusedWithTheRemedy(t *testing.T) {
	dir := t.TempDir()
	id := open(t, dir)
	if err := id.AdoptCluster("C1"); err != nil {
		t.Fatal(err)
	}
	if err := id.AdoptCluster("C1"); err != nil {
		t.Errorf("adopting the same cluster again: %v", err)
	}
	if err := id.AdoptCluster("C2"); !errors.Is(err, cluster.ErrOtherCluster) || !strings.Contains(err.Error(), "correct the seeds") {
		t.Errorf("adopting another cluster: %v", err)
	}
	_ = id.Close()
	for _, c := range []struct {
		node, zone string
		want       error
		remedy     string
	}{
		{"n1", "a", cluster.ErrOtherNode, "correct the data directory or the node id"},
		{"n0", "b", cluster.ErrOtherZone, "evict the node"},
	} {
		_, err := cluster.LoadOrCreateIdentity(dir, telemetry.NodeID(c.node), telemetry.Zone(c.zone))
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.remedy) {
			t.Errorf("opened as %s in %s: %v, want %v with %q", c.node, c.zone, err, c.want, c.remedy)
		}
	}
}

func TestDirectoryWithDataButNoIdentityIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "0001.wal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.LoadOrCreateIdentity(dir, "n0", "a"); !errors.Is(err, cluster.ErrBadIdentity) {
		t.Fatalf("got %v", err)
	}
}

func TestDamagedIdentityIsRefused(t *testing.T) {
	for _, content := range []string{
		"", "{", `{"version":2,"node":"n0","incarnation":"5f3a9c1e","zone":"a"}`,
		`{"version":1,"node":"n0","incarnation":"5F3A9C1E","zone":"a"}`, `{"version":1,"node":"","incarnation":"5f3a9c1e","zone":"a"}`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := cluster.LoadOrCreateIdentity(dir, "n0", "a"); !errors.Is(err, cluster.ErrBadIdentity) {
			t.Errorf("content %q: %v", content, err)
		}
	}
}

func TestRemainsOfACrashedWriteAreIgnored(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "node.json.tmp"), []byte("{\"vers"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

func TestUnwritableDirectoryIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A file in the way fails for every user, a mode only for some.
	_, err := cluster.LoadOrCreateIdentity(filepath.Join(file, "data"), "n0", "a")
	if !errors.Is(err, cluster.ErrUnwritable) || !strings.Contains(err.Error(), "choose another directory") {
		t.Fatalf("got %v", err)
	}
}

func TestSecondProcessIsToldWhoHoldsTheDirectory(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SLUICE_TEST_LOCK_DIR="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 5)
	if _, err := out.Read(line); err != nil || string(line) != "held\n" {
		t.Fatalf("other process said %q, %v", line, err)
	}
	_, err = cluster.LoadOrCreateIdentity(dir, "n0", "a")
	if !errors.Is(err, cluster.ErrLocked) || !strings.Contains(err.Error(), "process "+strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("got %v, want pid %d", err, cmd.Process.Pid)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	open(t, dir) // the lock ended with the process
}

func TestNamesThatCannotBePartOfAPeerIDAreRefused(t *testing.T) {
	for _, id := range []string{"", "-n", ".n", "n 0", "n/0", "n\x00", strings.Repeat("n", 64), "ü"} {
		if err := cluster.ValidateNodeID(telemetry.NodeID(id)); err == nil {
			t.Errorf("node id %q is accepted", id)
		}
	}
	for _, id := range []string{"n0", "A", "rack-1.eu_west", strings.Repeat("n", 63)} {
		if err := cluster.ValidateNodeID(telemetry.NodeID(id)); err != nil {
			t.Errorf("node id %q: %v", id, err)
		}
	}
	for _, peer := range []string{"", "n0", "n0.", ".5f3a9c1e", "n0.5f3a9c1", "n0.5f3a9c1g", "n0.5F3A9C1E"} {
		if _, _, err := cluster.SplitPeer(peer); err == nil {
			t.Errorf("peer id %q is accepted", peer)
		}
	}
	if node, inc, err := cluster.SplitPeer("a.b.00ff00ff"); err != nil || node != "a.b" || inc != "00ff00ff" {
		t.Errorf("a.b.00ff00ff splits into %q, %q, %v", node, inc, err)
	}
}

func TestRenewedDirectoryKeepsWhatWasThereUnderTheOldName(t *testing.T) {
	dir := t.TempDir()
	id := open(t, dir)
	if err := id.AdoptCluster("C1"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"wal/1.wal", "shards/00001/snapshot", "store/00001/rows"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(name), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	old := id.Peer()
	aside, err := id.Renew()
	if err != nil {
		t.Fatal(err)
	}
	if id.Peer() == old || id.ClusterID() != "C1" || !strings.Contains(aside, strings.TrimPrefix(old, "n0.")) {
		t.Errorf("%s became %s of cluster %q, set aside in %s", old, id.Peer(), id.ClusterID(), aside)
	}
	for _, path := range []string{filepath.Join(aside, "wal/1.wal"), filepath.Join(aside, "shards/00001/snapshot"), filepath.Join(aside, "node.json"), filepath.Join(dir, "store/00001/rows")} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "wal")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log is still in place: %v", err)
	}
	second := id.Peer()
	if err := id.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if again.Peer() != second {
		t.Errorf("reopened as %s, want %s", again.Peer(), second)
	}
	if _, err := again.Renew(); err != nil || again.Peer() == second { // there is nothing to move
		t.Errorf("renewed again: %s, %v", again.Peer(), err)
	}
}
