package session

import (
	"errors"
	"fmt"

	"github.com/sluice-iot/sluice/internal/wire"
)

// opKind names an operation; the numbers are part of the log format.
type opKind byte

const (
	opConnect    opKind = 1  // a client takes its session
	opDisconnect opKind = 2  // its connection ended
	opAttach     opKind = 3  // a node that was out of reach still has the client
	opSubscribe  opKind = 4  // subscriptions of a durable session change
	opAck        opKind = 5  // a queued message is the client's
	opRelease    opKind = 6  // QoS 2: the client has it, its release follows
	opReceive    opKind = 7  // QoS 2: the client published under a packet id
	opForget     opKind = 8  // QoS 2: the client released its publish
	opMessage    opKind = 9  // a message for the durable sessions of the shard
	opEnqueue    opKind = 10 // a message for one session
	opGone       opKind = 11 // a process is lost with all its connections
	opWillSent   opKind = 12 // wills that reached their subscribers
	opTick       opKind = 13 // nothing but the time
	opDelivered  opKind = 14 // QoS 2: a publish of the client has gone to its subscribers
)

// Status is the outcome of one operation.
type Status byte

// The outcomes; the numbers are part of the answers' format.
const (
	StatusOK       Status = 0
	StatusFenced   Status = 1 // the session has another owner, or is no more
	StatusIdentity Status = 2 // the client id belongs to another identity
	StatusFull     Status = 3 // a bound of the shard is reached
	StatusInvalid  Status = 4 // the operation cannot be understood
)

// ErrFenced, ErrIdentity, ErrFull and ErrInvalid are the outcomes as errors.
var (
	ErrFenced   = errors.New("the session has another owner")
	ErrIdentity = errors.New("the client id belongs to another identity")
	ErrFull     = errors.New("the shard has no room for it")
	ErrInvalid  = errors.New("operation not understood")
)

// Err is nil for StatusOK.
func (s Status) Err() error {
	switch s {
	case StatusOK:
		return nil
	case StatusFenced:
		return ErrFenced
	case StatusIdentity:
		return ErrIdentity
	case StatusFull:
		return ErrFull
	case StatusInvalid:
		return ErrInvalid
	}
	return fmt.Errorf("outcome %d of a session operation is not known: upgrade this node", s)
}

// Ref names a session as its owner knows it.
type Ref struct {
	Client string
	Epoch  uint64
}

func (r Ref) append(dst []byte, kind opKind) []byte {
	return wire.AppendUint(wire.AppendString(append(dst, byte(kind)), r.Client), r.Epoch)
}

func decodeRef(r *wire.Reader) Ref { return Ref{r.String(), r.Uint()} }

// Connect takes the session of a client id for a connection. Times are in
// microseconds.
type Connect struct {
	Client     string
	Identity   string
	Node       string // peer id; the batch names it too, but a repeat must not depend on it
	NodeEpoch  uint64
	Waited     int64 // for how long when this was sent, by the node's own watch, in microseconds
	Clean      bool  // what was there before is dropped
	Durable    bool  // outlives its connection
	Expiry     int64
	QueueMax   int
	QueueBytes int
	QueueAge   int64
	Will       *Message // nil is none; its Expires is an interval from when it is sent
	WillDelay  int64
}

const (
	cleanFlag   = 1
	durableFlag = 2
	willFlag    = 4
)

// Append encodes the operation.
func (c *Connect) Append(dst []byte) []byte {
	flags := byte(0)
	if c.Clean {
		flags |= cleanFlag
	}
	if c.Durable {
		flags |= durableFlag
	}
	if c.Will != nil {
		flags |= willFlag
	}
	dst = wire.AppendString(append(dst, byte(opConnect)), c.Client)
	dst = wire.AppendString(dst, c.Identity)
	dst = wire.AppendUint(wire.AppendString(dst, c.Node), c.NodeEpoch)
	dst = wire.AppendInt(append(dst, flags), c.Expiry)
	dst = wire.AppendUint(dst, uint64(max(c.QueueMax, 0)))
	dst = wire.AppendUint(dst, uint64(max(c.QueueBytes, 0)))
	dst = wire.AppendInt(dst, c.QueueAge)
	dst = wire.AppendUint(dst, uint64(max(c.Waited, 0)))
	if c.Will != nil {
		dst = wire.AppendInt(c.Will.Append(dst), c.WillDelay)
	}
	return dst
}

func decodeConnect(r *wire.Reader) (c Connect) {
	c.Client, c.Identity = r.String(), r.String()
	c.Node, c.NodeEpoch = r.String(), r.Uint()
	flags := r.Byte()
	c.Clean, c.Durable = flags&cleanFlag != 0, flags&durableFlag != 0
	c.Expiry = max(r.Int(), 0)
	c.QueueMax, c.QueueBytes = int(min(r.Uint(), queueMaxMax)), int(min(r.Uint(), queueBytesMax))
	c.QueueAge = max(r.Int(), 0)
	c.Waited = int64(min(r.Uint(), waitedMax))
	if flags&willFlag != 0 {
		c.Will = DecodeMessage(r)
		c.WillDelay = max(r.Int(), 0)
	}
	return c
}

const (
	// queueMaxMax keeps the packet ids that follow from numbers apart.
	queueMaxMax   = 60_000
	queueBytesMax = 1 << 30
	waitedMax     = 1 << 50 // microseconds
)

// Connected is the answer to a Connect.
type Connected struct {
	Epoch     uint64
	Present   bool // the session was there before
	Node      string
	NodeEpoch uint64 // of the owner before, "" for none
	Before    uint64 // its epoch
	First     uint64 // number of the oldest message not acknowledged
	Last      uint64 // number of the newest message
	Sent      uint64 // up to here messages may have been on the wire before
	Received  []uint16
	Subs      []Subscription
}

func (c *Connected) append(dst []byte) []byte {
	dst = wire.AppendBool(wire.AppendUint(dst, c.Epoch), c.Present)
	dst = wire.AppendUint(wire.AppendString(dst, c.Node), c.NodeEpoch)
	dst = wire.AppendUint(dst, c.Before)
	dst = wire.AppendUint(wire.AppendUint(wire.AppendUint(dst, c.First), c.Last), c.Sent)
	dst = wire.AppendUint(dst, uint64(len(c.Received)))
	for _, id := range c.Received {
		dst = wire.AppendUint(dst, uint64(id))
	}
	dst = wire.AppendUint(dst, uint64(len(c.Subs)))
	for i := range c.Subs {
		dst = c.Subs[i].Append(dst)
	}
	return dst
}

// DecodeConnected reads the answer to a Connect.
func DecodeConnected(answer []byte) (c Connected, err error) {
	r := wire.NewReader(answer)
	c.Epoch, c.Present = r.Uint(), r.Bool()
	c.Node, c.NodeEpoch, c.Before = r.String(), r.Uint(), r.Uint()
	c.First, c.Last, c.Sent = r.Uint(), r.Uint(), r.Uint()
	for range r.Count(1) {
		c.Received = append(c.Received, uint16(r.Uint()))
	}
	for range r.Count(3) {
		c.Subs = append(c.Subs, DecodeSubscription(r))
	}
	return c, r.Err()
}

// AppendDisconnect encodes the end of a connection. will says whether the will is
// due, after its delay but at least minDelay; expiry is how long the session lives
// on, if it is durable; sent is the number of the last message that was on the wire.
func AppendDisconnect(dst []byte, ref Ref, will bool, minDelay, expiry int64, sent uint64) []byte {
	dst = wire.AppendBool(ref.append(dst, opDisconnect), will)
	return wire.AppendUint(wire.AppendInt(wire.AppendInt(dst, minDelay), expiry), sent)
}

// AppendAttach encodes that a node, after it was out of reach, still has the client.
func AppendAttach(dst []byte, ref Ref) []byte { return ref.append(dst, opAttach) }

// AppendSubscribe encodes new and changed subscriptions of a durable session, and
// the filters of those that go.
func AppendSubscribe(dst []byte, ref Ref, add []Subscription, remove []string) []byte {
	dst = wire.AppendUint(ref.append(dst, opSubscribe), uint64(len(add)))
	for i := range add {
		dst = add[i].Append(dst)
	}
	dst = wire.AppendUint(dst, uint64(len(remove)))
	for _, f := range remove {
		dst = wire.AppendString(dst, f)
	}
	return dst
}

// AppendAck encodes that the message with a number is the client's.
func AppendAck(dst []byte, ref Ref, seq uint64) []byte {
	return wire.AppendUint(ref.append(dst, opAck), seq)
}

// AppendRelease encodes that the client has a message of QoS 2: from now on only
// its release is sent.
func AppendRelease(dst []byte, ref Ref, seq uint64) []byte {
	return wire.AppendUint(ref.append(dst, opRelease), seq)
}

// AppendReceive encodes that the client published with QoS 2 under a packet id. The
// answer is a number for that publish, the same when it is asked again, and whether
// it has been delivered.
func AppendReceive(dst []byte, ref Ref, id uint16) []byte {
	return wire.AppendUint(ref.append(dst, opReceive), uint64(id))
}

// DecodeReceived reads the answer to AppendReceive.
func DecodeReceived(answer []byte) (number uint64, delivered bool, err error) {
	r := wire.NewReader(answer)
	number, delivered = r.Uint(), r.Bool()
	return number, delivered, r.Err()
}

// AppendDelivered encodes that a publish has gone to its subscribers: when it comes
// again it is only answered.
func AppendDelivered(dst []byte, ref Ref, id uint16) []byte {
	return wire.AppendUint(ref.append(dst, opDelivered), uint64(id))
}

// AppendForget encodes that the client released its publish of QoS 2.
func AppendForget(dst []byte, ref Ref, id uint16) []byte {
	return wire.AppendUint(ref.append(dst, opForget), uint64(id))
}

// Key tells a publish of QoS 2 from every other one; zero is none.
type Key struct {
	Client string
	Number uint64
}

// AppendMessage encodes a message for the durable sessions of a shard; groups are
// the shared filters of which this shard has to find a member. A message that is
// kept becomes the retained message of its topic.
func AppendMessage(dst []byte, m *Message, groups []string, key Key, keep bool) []byte {
	dst = m.Append(append(dst, byte(opMessage)))
	dst = wire.AppendBool(dst, keep)
	dst = wire.AppendUint(wire.AppendString(dst, key.Client), key.Number)
	dst = wire.AppendUint(dst, uint64(len(groups)))
	for _, g := range groups {
		dst = wire.AppendString(dst, g)
	}
	return dst
}

// AppendEnqueue encodes a message for one durable session, a retained one that a
// new subscription is owed.
func AppendEnqueue(dst []byte, ref Ref, m *Message, qos byte, retain bool, ids []uint32) []byte {
	it := Item{Message: m, QoS: qos, Retain: retain, IDs: ids}
	return it.append(ref.append(dst, opEnqueue))
}

// AppendGone encodes that a node's process, and every earlier one of it, is lost.
func AppendGone(dst []byte, node string, epoch uint64) []byte {
	return wire.AppendUint(wire.AppendString(append(dst, byte(opGone)), node), epoch)
}

// AppendWillSent encodes that wills are done with.
func AppendWillSent(dst []byte, ids ...uint64) []byte {
	dst = wire.AppendUint(append(dst, byte(opWillSent)), uint64(len(ids)))
	for _, id := range ids {
		dst = wire.AppendUint(dst, id)
	}
	return dst
}

// AppendTick encodes the operation that only brings the time.
func AppendTick(dst []byte) []byte { return append(dst, byte(opTick)) }

// AppendBatch encodes what a node proposes at once: operations of its own, in
// order. A leader that proposes for itself has no name and no sequence.
func AppendBatch(dst []byte, node string, epoch, seq uint64, ops [][]byte) []byte {
	dst = wire.AppendUint(wire.AppendUint(wire.AppendString(dst, node), epoch), seq)
	dst = wire.AppendUint(dst, uint64(len(ops)))
	for _, op := range ops {
		dst = wire.AppendString(dst, op)
	}
	return dst
}

// Answer is the outcome of one operation of a batch.
type Answer struct {
	Status Status
	Body   []byte
}

// DecodeAnswers reads the answer to a batch.
func DecodeAnswers(b []byte) ([]Answer, error) {
	r := wire.NewReader(b)
	var out []Answer
	for range r.Count(2) {
		out = append(out, Answer{Status(r.Byte()), r.Blob()})
	}
	return out, r.Err()
}
