package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sluice-iot/sluice/cluster"
	"github.com/sluice-iot/sluice/telemetry"
)

// State is what gossip thinks of a member.
type State uint8

// The states of a member.
const (
	Alive   State = iota
	Suspect       // does not answer this node
	Dead          // declared dead by the members, or gone by its own word
)

func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	default:
		return "dead"
	}
}

// Member is a node as it describes itself. The addresses are host:port as others
// reach them.
type Member struct {
	Peer      string
	Node      telemetry.NodeID // the node id in Peer
	Zone      telemetry.Zone
	Mux       string
	MQTT      string
	HTTP      string
	ClusterID string // "" while it belongs to none

	State State // not part of what a node says of itself
}

// metaVersion begins the metadata, see FORMAT.md.
const metaVersion = 1

var errMeta = errors.New("malformed member metadata")

// encodeMember packs what a node says of itself into memberlist's metadata.
func encodeMember(m Member) []byte {
	b := []byte{metaVersion}
	for _, s := range []string{m.Peer, string(m.Zone), m.Mux, m.MQTT, m.HTTP, m.ClusterID} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return b
}

// decodeMember is the reverse. Bytes behind the known fields are ignored: later
// programs may append some.
func decodeMember(b []byte) (Member, error) {
	if len(b) == 0 || b[0] != metaVersion {
		return Member{}, fmt.Errorf("%w: not of version %d", errMeta, metaVersion)
	}
	b = b[1:]
	var f [6]string
	for i := range f {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return Member{}, fmt.Errorf("%w: field %d is cut off", errMeta, i)
		}
		f[i] = string(b[w : w+int(n)])
		b = b[w+int(n):]
	}
	m := Member{Peer: f[0], Zone: telemetry.Zone(f[1]), Mux: f[2], MQTT: f[3], HTTP: f[4], ClusterID: f[5]}
	node, _, err := cluster.SplitPeer(m.Peer)
	if err != nil {
		return Member{}, fmt.Errorf("%w: %w", errMeta, err)
	}
	m.Node = node
	return m, nil
}
