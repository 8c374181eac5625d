package broker

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/pubsub"
	"github.com/sluice-iot/sluice/telemetry"
)

// serveEnv makes the test binary a server process, so that its CPU time can be told
// from the load generator's.
const serveEnv = "SLUICE_BROKER_BENCH"

const (
	benchConnections = 50
	benchWindow      = 16
	commitTime       = 5 * time.Millisecond
)

// delayed commits everything it is given commitTime later, in batches as a log would.
type delayed struct {
	mu    sync.Mutex
	queue []struct {
		at   time.Time
		done func(telemetry.Result)
	}
}

func (d *delayed) Publish(_ *telemetry.Publish, done func(telemetry.Result)) {
	d.mu.Lock()
	d.queue = append(d.queue, struct {
		at   time.Time
		done func(telemetry.Result)
	}{time.Now().Add(commitTime), done})
	d.mu.Unlock()
}

func (d *delayed) run() {
	for range time.Tick(time.Millisecond) {
		now := time.Now()
		d.mu.Lock()
		n := 0
		for n < len(d.queue) && !d.queue[n].at.After(now) {
			n++
		}
		due := d.queue[:n:n]
		d.queue = d.queue[n:]
		d.mu.Unlock()
		for _, p := range due {
			p.done(telemetry.Result{Applied: 1})
		}
	}
}

type allowHook struct{ mqtt.HookBase }

func (allowHook) Provides(which byte) bool {
	return which == mqtt.OnConnectAuthenticate || which == mqtt.OnACLCheck
}
func (allowHook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (allowHook) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }

// serveBench is the server process: it prints its address and serves until its
// standard input ends.
func serveBench(kind string) error {
	log := slog.New(slog.DiscardHandler)
	addr := ""
	if kind == "mochi" {
		s := mqtt.New(&mqtt.Options{Logger: log})
		if err := s.AddHook(new(allowHook), nil); err != nil {
			return err
		}
		l := listeners.NewTCP(listeners.Config{ID: "t", Address: "127.0.0.1:0"})
		if err := s.AddListener(l); err != nil {
			return err
		}
		if err := s.Serve(); err != nil {
			return err
		}
		addr = l.Address()
	} else {
		d := &delayed{}
		go d.run()
		hub, err := pubsub.Alone(log)
		if err != nil {
			return err
		}
		e, err := benchEndpoint(kind)
		if err != nil {
			return err
		}
		cfg := Config{Endpoints: []Endpoint{e}, ConnectionsMax: 100_000, Limits: Limits{Connects: 1e6}}
		b, err := New(log, prometheus.NewRegistry(), cfg, d, hub)
		if err != nil {
			return err
		}
		hub.Start(b)
		if err := b.Start(context.Background()); err != nil {
			return err
		}
		addr = b.Addr().String()
	}
	if _, err := fmt.Println(addr); err != nil {
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); { // each line asks for the memory
		if _, err := fmt.Println(memoryInUse(), runtime.NumGoroutine()); err != nil {
			return err
		}
	}
	return nil
}

// benchEndpoint is plain TCP for "sluice", and TLS, WebSocket or both for the kinds of
// these names.
func benchEndpoint(kind string) (Endpoint, error) {
	e := Endpoint{Listen: "127.0.0.1:0"}
	if strings.HasSuffix(kind, "ws") || strings.HasSuffix(kind, "wss") {
		e.WebSocket = &WebSocket{}
	}
	if !strings.HasSuffix(kind, "tls") && !strings.HasSuffix(kind, "wss") {
		return e, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return e, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return e, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	e.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return cfg, nil }} // as TLSFiles does
	return e, nil
}

// memoryInUse is what the Go program holds after a collection: heap, stacks, and the
// runtime's own structures.
func memoryInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse + m.MSpanInuse + m.MCacheInuse + m.OtherSys
}

// server is a server process of the benchmarks.
type server struct {
	addr string
	pid  int
	in   io.WriteCloser
	out  *bufio.Reader
}

func startServer(b *testing.B, kind string) *server {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+kind)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	s := &server{pid: cmd.Process.Pid, in: in, out: bufio.NewReader(out)}
	addr, err := s.out.ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	s.addr = strings.TrimSpace(addr)
	return s
}

// memory asks the server for the bytes it holds and its goroutines.
func (s *server) memory(b *testing.B) (bytes uint64, goroutines int) {
	b.Helper()
	if _, err := io.WriteString(s.in, "memory\n"); err != nil {
		b.Fatal(err)
	}
	if _, err := fmt.Fscanln(s.out, &bytes, &goroutines); err != nil {
		b.Fatal(err)
	}
	return bytes, goroutines
}

// BenchmarkPublishQoS1 compares the broker, which answers after a commit of 5 ms,
// with plain mochi, which answers at once: 50 connections with 16 publishes in
// flight each, 200 bytes, server in a process of its own. An op is one publish.
func BenchmarkPublishQoS1(b *testing.B) {
	for _, kind := range []string{"sluice", "mochi"} {
		b.Run(kind, func(b *testing.B) {
			s := startServer(b, kind)
			load(b, s.addr, s.pid)
		})
	}
}

func load(b *testing.B, addr string, pid int) {
	conns := make([]net.Conn, benchConnections)
	for i := range conns {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		defer nc.Close()
		if _, err := nc.Write(connectPacket(4, fmt.Sprintf("dev-%03d", i), connectOptions{})); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(nc, make([]byte, 4)); err != nil {
			b.Fatal(err)
		}
		conns[i] = nc
	}
	share := max(1, b.N/len(conns))
	before := cpuOf(b, pid)
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, nc := range conns {
		wg.Go(func() {
			if err := loadOne(nc, i, share); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	total := float64(share * len(conns))
	b.ReportMetric(total/b.Elapsed().Seconds(), "publishes/s")
	b.ReportMetric((cpuOf(b, pid)-before)*1e6/total, "server-us/publish")
	b.ReportMetric(0, "ns/op")
}

// loadOne keeps a window of publishes in flight on one connection.
func loadOne(nc net.Conn, i, n int) error {
	c := &client{v: 4}
	topic := fmt.Sprintf("devices/dev-%03d/telemetry", i)
	payload := `{"device_id":"` + topic[8:15] + `","timestamp":1790000000000,"sensors":{"temperature":21.525,"humidity":48.1},"metadata":{"pad":"` + strings.Repeat("x", 83) + `"}}`
	acks := make([]byte, 4*benchWindow)
	var batch []byte
	sent, acked, partial := 0, 0, 0
	for acked < n {
		batch = batch[:0]
		for ; sent < n && sent-acked < benchWindow; sent++ {
			batch = append(batch, c.encode(pub{topic: topic, payload: payload, qos: 1, id: uint16(sent%65535 + 1)})...)
		}
		if len(batch) > 0 {
			if _, err := nc.Write(batch); err != nil {
				return err
			}
		}
		got, err := nc.Read(acks)
		if err != nil {
			return err
		}
		acked += (partial + got) / 4
		partial = (partial + got) % 4
	}
	return nil
}

// cpuOf reads the user and system time of a process in seconds (Linux, 10 ms ticks).
func cpuOf(b *testing.B, pid int) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip("needs /proc for the server's CPU time:", err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		b.Fatal(err)
	}
	system, err := strconv.Atoi(fields[12])
	if err != nil {
		b.Fatal(err)
	}
	return float64(user+system) / 100
}
