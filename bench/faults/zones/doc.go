// Package zones puts processes into network namespaces of their own and joins
// them by a switch in this process, which may cut any direction between two of
// them, lose packets and delay them. What the kernel of a machine offers for that
// (netem, nft) need not be there; TUN devices and namespaces have to.
//
// # What it owns
//
// A network namespace with a TUN device per zone, a TUN device in this process's
// own namespace, two goroutines per device, and the packets under way: at most
// packetsMax per device, more are dropped as a router drops them. Close takes all
// of it away.
//
// # What it does not do
//
// IPv4 only. Packets with different delays overtake each other, as they do.
//
// # Example
//
//	n, err := zones.New(3)
//	if errors.Is(err, zones.ErrUnavailable) { ... } // needs root and iproute2
//	defer n.Close()
//	cmd := append(n.Prefix(0), "server", "--listen", n.Host(0)+":80")
//	n.Cut(0, 1) // nothing from zone 0 reaches zone 1
//	n.Heal()
package zones
