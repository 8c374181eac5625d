package meta

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/sluice-iot/sluice/cluster/placement"
	"github.com/sluice-iot/sluice/telemetry"
)

// Command is a change of the state. Applied twice it has the effect of once.
type Command interface{ kind() kind }

type kind byte

// The kinds; the numbers are part of the log. 9 is reserved for lease epochs.
const (
	kindInit         kind = 1
	kindRegister     kind = 2
	kindDraining     kind = 3
	kindTable        kind = 4
	kindPlacement    kind = 5
	kindFeature      kind = 6
	kindEvict        kind = 7
	kindNextEpoch    kind = 8
	kindReplace      kind = 10
	kindStartMove    kind = 11
	kindEndMove      kind = 12
	entryVersion          = 1
	entryHeaderBytes      = 6
)

// initCluster makes the cluster; only Init proposes it.
type initCluster struct {
	ClusterID string          `json:"cluster_id"`
	Shards    uint32          `json:"shards"`
	Replicas  int             `json:"replicas"`
	Nodes     []Node          `json:"nodes"`
	Table     placement.Table `json:"table"`
}

// RegisterNode adds a node or updates its addresses and zone; Draining of a known
// node stays as it is. Refused with ErrIncarnation while the id is registered
// with another incarnation, with ErrEvicted when this one was evicted.
type RegisterNode struct {
	Node Node `json:"node"`
}

// SetDraining marks a node that shall lose its shards, or clears the mark.
type SetDraining struct {
	Node     telemetry.NodeID `json:"node"`
	Draining bool             `json:"draining"`
}

// SetTable replaces the whole table if its version is Expect; ErrVersion if not.
type SetTable struct {
	Expect uint64          `json:"expect"` // State.TableVersion
	Table  placement.Table `json:"table"`
}

// SetPlacement replaces one shard's placement if the table's version is Expect.
type SetPlacement struct {
	Expect    uint64              `json:"expect"` // State.TableVersion
	Shard     telemetry.ShardID   `json:"shard"`
	Placement placement.Placement `json:"placement"`
}

// SetFeature raises the feature level; a lower one changes nothing.
type SetFeature struct {
	Level uint32 `json:"level"`
}

// Evict removes a peer for ever: the registry forgets it, the raft group drops
// it, and it may not register again. Its node id is free for a new incarnation.
type Evict struct {
	Peer string `json:"peer"`
}

// ReplaceNode puts a new incarnation of a node in the place of one whose data
// directory is gone or damaged: Old is evicted and Node registered in one entry,
// so that no moment has two incarnations of an id, or none. Refused with
// ErrIncarnation unless Old is the one that is registered, and with ErrAlive
// while the leader can reach Old.
type ReplaceNode struct {
	Node Node   `json:"node"`
	Old  string `json:"old"` // peer id
}

// StartMove records the intent to move a replica of a shard from one node to
// another. From may be "" (a replica more) and To may be "" (one less). ErrMove
// when the placement has changed meanwhile or the shard is moving already.
type StartMove struct {
	Shard telemetry.ShardID `json:"shard"`
	Move
}

// EndMove ends an intent: done when the shard's group has To as a voter and From
// not at all any more, so that the table may say so; otherwise it is given up,
// and the group goes back to what the table says.
type EndMove struct {
	Shard telemetry.ShardID `json:"shard"`
	Move
	Done bool `json:"done"`
}

// nextEpoch hands out the next origin epoch of a node. Twice applied it hands
// out two, of which the caller gets one: still unique and increasing.
type nextEpoch struct {
	Peer string `json:"peer"`
}

func (initCluster) kind() kind  { return kindInit }
func (RegisterNode) kind() kind { return kindRegister }
func (SetDraining) kind() kind  { return kindDraining }
func (SetTable) kind() kind     { return kindTable }
func (SetPlacement) kind() kind { return kindPlacement }
func (SetFeature) kind() kind   { return kindFeature }
func (Evict) kind() kind        { return kindEvict }
func (nextEpoch) kind() kind    { return kindNextEpoch }
func (ReplaceNode) kind() kind  { return kindReplace }
func (StartMove) kind() kind    { return kindStartMove }
func (EndMove) kind() kind      { return kindEndMove }

func encodeCommand(c Command) ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode meta command: %w", err)
	}
	b := make([]byte, entryHeaderBytes, entryHeaderBytes+len(body))
	b[0], b[1] = entryVersion, byte(c.kind())
	binary.LittleEndian.PutUint32(b[2:], 0) // namespace
	return append(b, body...), nil
}

func decodeCommand(b []byte) (Command, error) {
	if len(b) < entryHeaderBytes {
		return nil, fmt.Errorf("decode meta entry: %d bytes, the header has %d", len(b), entryHeaderBytes)
	}
	if b[0] != entryVersion {
		return nil, fmt.Errorf("decode meta entry: format version %d, this program reads %d", b[0], entryVersion)
	}
	if ns := binary.LittleEndian.Uint32(b[2:]); ns != 0 {
		return nil, fmt.Errorf("decode meta entry: namespace %d, this program knows 0", ns)
	}
	body := b[entryHeaderBytes:]
	switch kind(b[1]) {
	case kindInit:
		return decodeBody[initCluster](body)
	case kindRegister:
		return decodeBody[RegisterNode](body)
	case kindDraining:
		return decodeBody[SetDraining](body)
	case kindTable:
		return decodeBody[SetTable](body)
	case kindPlacement:
		return decodeBody[SetPlacement](body)
	case kindFeature:
		return decodeBody[SetFeature](body)
	case kindEvict:
		return decodeBody[Evict](body)
	case kindNextEpoch:
		return decodeBody[nextEpoch](body)
	case kindReplace:
		return decodeBody[ReplaceNode](body)
	case kindStartMove:
		return decodeBody[StartMove](body)
	case kindEndMove:
		return decodeBody[EndMove](body)
	default:
		return nil, fmt.Errorf("decode meta entry: unknown kind %d", b[1])
	}
}

func decodeBody[T Command](b []byte) (Command, error) {
	var c T
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("decode meta entry of kind %d: %w", c.kind(), err)
	}
	return c, nil
}
