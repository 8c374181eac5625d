package zones

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Net is a set of zones and the switch between them.
type Net struct {
	name   string
	subnet int // 10.subnet.zone.1
	ports  []*port
	rules  rules
	done   sync.WaitGroup
}

// port is a TUN device.
type port struct {
	zone  int
	ns    string // "" is our own
	file  *os.File
	queue chan []byte

	mu     sync.Mutex
	closed bool // nothing is queued any more
}

// outsideHost is the third octet of this process's address.
const outsideHost = 100

// New makes count zones.
func New(count int) (*Net, error) {
	if err := available(); err != nil {
		return nil, err
	}
	n := &Net{name: fmt.Sprintf("sluice%d", os.Getpid()), subnet: 64 + rand.IntN(64)}
	n.rules.cut, n.rules.rng = map[[2]int]bool{}, rand.New(rand.NewPCG(rand.Uint64(), 0))
	for zone := Outside; zone < count; zone++ {
		p, err := n.open(zone)
		if err != nil {
			return nil, errors.Join(err, n.Close())
		}
		n.ports = append(n.ports, p)
	}
	for _, p := range n.ports {
		n.done.Go(func() { n.read(p) })
		n.done.Go(func() { p.write() })
	}
	return n, nil
}

func available() error {
	if os.Geteuid() != 0 {
		return ErrUnavailable
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Host is the address of a zone.
func (n *Net) Host(zone int) string {
	if zone == Outside {
		return fmt.Sprintf("10.%d.%d.1", n.subnet, outsideHost)
	}
	return fmt.Sprintf("10.%d.%d.1", n.subnet, zone)
}

func (n *Net) namespace(zone int) string { return n.name + "z" + strconv.Itoa(zone) }

// Prefix is what comes before a command that is to run in a zone.
func (n *Net) Prefix(zone int) []string {
	return []string{"ip", "netns", "exec", n.namespace(zone)}
}

func ip(args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: ip %v: %w: %s", ErrUnavailable, args, err, out)
	}
	return nil
}

// open makes the namespace and the device of a zone.
func (n *Net) open(zone int) (*port, error) {
	p := &port{zone: zone, queue: make(chan []byte, packetsMax)}
	device, in := n.name, []string{}
	if zone != Outside {
		p.ns, device = n.namespace(zone), "tun0"
		in = []string{"-n", p.ns}
		if err := ip("netns", "add", p.ns); err != nil {
			return nil, err
		}
	}
	var err error
	if err = inside(p.ns, func() error {
		p.file, err = tun(device)
		return err
	}); err != nil {
		return nil, errors.Join(err, n.remove(p))
	}
	for _, args := range [][]string{
		{"addr", "add", n.Host(zone) + "/16", "dev", device}, {"link", "set", device, "up"}, {"link", "set", "lo", "up"},
	} {
		if err := ip(append(append([]string(nil), in...), args...)...); err != nil {
			return nil, errors.Join(err, n.remove(p))
		}
	}
	return p, nil
}

// inside runs f in a namespace, on a thread that is thrown away.
func inside(ns string, f func() error) error {
	if ns == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		h, err := os.Open("/var/run/netns/" + ns)
		if err == nil {
			err = errors.Join(unix.Setns(int(h.Fd()), unix.CLONE_NEWNET), h.Close())
		}
		if err != nil {
			done <- fmt.Errorf("%w: enter namespace %s: %w", ErrUnavailable, ns, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// tun opens a TUN device.
func tun(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: open TUN device: %w", ErrUnavailable, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: make TUN device %s: %w", ErrUnavailable, name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Dial connects from within a zone, to its loopback for example.
func (n *Net) Dial(ctx context.Context, zone int, network, addr string) (c net.Conn, err error) {
	ierr := inside(n.namespace(zone), func() error {
		// The address is numeric: the dialer makes its socket on this thread.
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, ierr
}

const packetBytesMax = 64 << 10

// read takes the packets of a device to where they go.
func (n *Net) read(p *port) {
	buf := make([]byte, packetBytesMax)
	for {
		k, err := p.file.Read(buf)
		if err != nil {
			p.shut()
			return
		}
		to := n.destination(buf[:k])
		if to == nil {
			continue
		}
		delay, ok := n.rules.verdict(p.zone, to.zone)
		if !ok {
			continue
		}
		b := append([]byte(nil), buf[:k]...)
		if delay == 0 {
			to.put(b)
		} else {
			time.AfterFunc(delay, func() { to.put(b) })
		}
	}
}

// destination is the port of an IPv4 packet's address, nil if it has none.
func (n *Net) destination(b []byte) *port {
	if len(b) < 20 || b[0]>>4 != 4 || b[16] != 10 || int(b[17]) != n.subnet || b[19] != 1 {
		return nil
	}
	zone := int(b[18])
	if zone == outsideHost {
		zone = Outside
	}
	if i := zone - Outside; i >= 0 && i < len(n.ports) {
		return n.ports[i]
	}
	return nil
}

// put queues a packet, or drops it as a full router does.
func (p *port) put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return // a late packet of a network that is closed
	}
	select {
	case p.queue <- b:
	default:
	}
}

func (p *port) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	close(p.queue)
}

func (p *port) write() {
	for b := range p.queue {
		_, _ = p.file.Write(b) // a device that is down loses packets
	}
}

// Close takes everything away. Processes in the zones should have ended.
func (n *Net) Close() error {
	var errs []error
	for _, p := range n.ports {
		errs = append(errs, n.remove(p))
	}
	n.done.Wait()
	return errors.Join(errs...)
}

func (n *Net) remove(p *port) error {
	var errs []error
	if p.file != nil {
		errs = append(errs, p.file.Close())
	}
	if p.ns != "" {
		errs = append(errs, ip("netns", "del", p.ns))
	}
	return errors.Join(errs...)
}
