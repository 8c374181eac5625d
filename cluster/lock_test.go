package cluster

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// A supervisor starts a node again while the kernel still takes the killed one apart.
func TestDirectoryOfAProcessThatIsBeingKilledIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SLUICE_TEST_LOCK_DIR="+dir)
	in, err := cmd.StdinPipe() // holds as long as it is open
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("other process said %q, %v", line, err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	if _, err := os.Stat("/proc/self/stat"); err == nil && !running(pid) {
		t.Errorf("process %s does not count as running", pid)
	}
	locked := make(chan error, 1)
	go func() {
		f, err := lockDir(dir, time.Minute)
		if err == nil {
			err = f.Close()
		}
		locked <- err
	}()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-locked; err != nil { // the killed process is not reaped yet
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if running(pid) || running(strconv.Itoa(os.Getpid())) || running(holderUnknown) {
		t.Error("a process that is gone, our own or an unknown one counts as running")
	}
}
