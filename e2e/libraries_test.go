package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What others wrote to talk to a broker, each client on a node of its own choice.

func TestPahoForPythonSeesOneBroker(t *testing.T) {
	const python = "/usr/bin/python3" // Debian's, which has Debian's packages
	if exec.Command(python, "-c", "import paho.mqtt.client").Run() != nil {
		t.Skip("python3-paho-mqtt is not installed: make test-deps installs it")
	}
	overNodes(t, python, "pahopython.py")
}

func TestMQTTjsSeesOneBroker(t *testing.T) {
	if _, err := os.Stat("testdata/clients/node_modules/mqtt"); err != nil {
		t.Skip("MQTT.js is not installed: make test-deps installs it")
	}
	overNodes(t, "node", "mqttjs.mjs")
}

// overNodes runs a program of testdata/clients with the MQTT ports of a cluster.
func overNodes(t *testing.T, interpreter, program string) {
	t.Helper()
	args := []string{program}
	for _, n := range start(t).Nodes() {
		_, port, _ := strings.Cut(n.MQTT, ":")
		args = append(args, port)
	}
	cmd := exec.CommandContext(t.Context(), interpreter, args...)
	cmd.Dir = "testdata/clients"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
	t.Logf("\n%s", out)
}
