package session

import (
	"errors"
	"time"

	"github.com/sluice-iot/sluice/telemetry"
)

// ErrElsewhere answers a CONNECT whose shard has a leader that this node does not reach,
// while another node does.
var ErrElsewhere = errors.New("another node reaches the shard of the session, this one does not")

// Astray is a shard that works, as another node says, and of whose leader this node has
// not heard for a while.
type Astray struct {
	Shard telemetry.ShardID
	For   time.Duration
}
