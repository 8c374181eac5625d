package mux

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestValidateNamesEveryProblem(t *testing.T) {
	err := Config{Self: "n0", Secret: []byte("short"), SilentAfter: time.Millisecond, MaxInflight: 1000, FrameBytesMax: 10, RPCTimeout: -1}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"self:", "listen:", "secret:", "silent after:", "max inflight:", "frame bytes max:", "rpc timeout:"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %v", part, err)
		}
	}
}

func TestParsePeerAcceptsOnlyNodeAndIncarnation(t *testing.T) {
	if node, incarnation, err := ParsePeer("rack.7.5f3a9c1e"); err != nil || node != "rack.7" || incarnation != 0x5f3a9c1e {
		t.Errorf("got %q %x %v", node, incarnation, err)
	}
	for _, bad := range []string{"", "n0", "n0.", ".5f3a9c1e", "n0.5f3a9c1", "n0.5F3A9C1E", "n0.+f3a9c1e", "n0.5f3a9c1ef", strings.Repeat("n", 120) + ".5f3a9c1e"} {
		if _, _, err := ParsePeer(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestPortInUseIsAClearError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	addr := l.Addr().String()
	if _, err := New(nil, nil, Config{Self: peerID(0), Listen: addr, Secret: testSecret}, newDirectory()); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v", err)
	}
}

func TestMetricsCountAndPeersLeaveThem(t *testing.T) {
	d, reg := newDirectory(), prometheus.NewPedanticRegistry()
	m, err := New(nil, reg, Config{Self: peerID(0), Listen: "127.0.0.1:0", Secret: testSecret, ForgetAfter: time.Millisecond, PingInterval: 10 * time.Millisecond}, d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	o := newTestMux(t, d, peerID(1))
	o.Handle(64, echo)
	if _, err := m.Call(testContext(t), peerID(1), 64, 0, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a round trip", func() bool { _, ok := m.RoundTrip(peerID(1)); return ok })
	count := func(name string) (n int, sum float64) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == name {
				for _, v := range f.GetMetric() {
					n, sum = n+1, sum+v.GetCounter().GetValue()+v.GetGauge().GetValue()
				}
			}
		}
		return n, sum
	}
	for _, name := range []string{"sluice_mux_frames_sent_total", "sluice_mux_frames_received_total", "sluice_mux_writes_total",
		"sluice_mux_sent_bytes_total", "sluice_mux_connects_total", "sluice_mux_round_trip_seconds"} {
		// A write is counted when it has returned, which may be after its answer came.
		eventually(t, "one series that counts in "+name, func() bool { n, sum := count(name); return n == 1 && sum > 0 })
	}
	_ = o.Close()
	eventually(t, "the peer to be forgotten", func() bool { n, _ := count("sluice_mux_connects_total"); return n == 0 })
}
