package pubsub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/internal/wire"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Shards is the replicated part: the sessions in the logs of the shards.
type Shards interface {
	// Count is the number of shards.
	Count() uint32
	// Submit sends a batch to the leader of a shard; done is called exactly once.
	Submit(id telemetry.ShardID, batch []byte, done func(answer []byte, err error))
	// Fetch asks the leader for what is queued for a session from a number on, and
	// for the newest number. session.ErrFenced is lost on the way: it is any error
	// that Fenced reports.
	Fetch(ctx context.Context, id telemetry.ShardID, ref session.Ref, from uint64) (items []session.Item, last uint64, err error)
	// Fenced reports whether an error of Fetch means that the session is another's.
	Fenced(err error) bool
	// Settled waits until the leader's announcements are known to all nodes.
	Settled(ctx context.Context, id telemetry.ShardID) error
	// Retained lists the retained messages under a filter.
	Retained(ctx context.Context, filter string) ([]*session.Message, error)
	// Leads reports whether this node leads a shard right now.
	Leads(id telemetry.ShardID) bool
}

// ShardOf is the shard of a client's session.
func (h *Hub) ShardOf(client string) telemetry.ShardID {
	return telemetry.ShardOf(client, h.shards.Count())
}

// await is the done of an operation that somebody waits for.
type await chan result

type result struct {
	answer session.Answer
	err    error
}

func (a await) done(answer session.Answer, err error) { a <- result{answer, err} }

func (a await) wait(ctx context.Context) ([]byte, error) {
	select {
	case r := <-a:
		if r.err != nil {
			return nil, r.err
		}
		return r.answer.Body, r.answer.Status.Err()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the shard of the session: %w", ctx.Err())
	}
}

// kickMax bounds the wait for the node that had a session.
const kickMax = time.Second

func (h *Hub) kick(ctx context.Context, node string, ref session.Ref) {
	if !h.net.Connected(node) {
		return // fenced anyway
	}
	ctx, cancel := context.WithTimeout(ctx, kickMax)
	defer cancel()
	body := wire.AppendUint(wire.AppendString([]byte{kickVersion}, ref.Client), ref.Epoch)
	if _, err := h.net.Call(ctx, node, FrameKick, body); err != nil {
		h.log.Debug("the node that had a session did not close it in time", "client", ref.Client, "peer", node, "err", err)
	}
}

// AcceptKick closes the connection of a client whose session another node has
// taken. It never blocks.
func (h *Hub) AcceptKick(body []byte, reply func([]byte, error)) {
	r := wire.NewReader(body)
	if v := r.Byte(); v != kickVersion {
		reply(nil, errVersion(v))
		return
	}
	ref := session.Ref{Client: r.String(), Epoch: r.Uint()}
	if r.Err() != nil {
		reply(nil, r.Err())
		return
	}
	h.client().Fence(ref)
	reply(nil, nil)
}

// Disconnect ends a connection. A will that is due waits at least minDelay; sent is
// the number of the last queued message that was on the wire.
func (h *Hub) Disconnect(ref session.Ref, will bool, minDelay, expiry time.Duration, sent uint64) {
	h.submit(h.ShardOf(ref.Client), session.AppendDisconnect(nil, ref, will, minDelay.Microseconds(), expiry.Microseconds(), sent), nil)
}

// Change brings new and removed subscriptions into a durable session and returns
// when no node routes without them.
func (h *Hub) Change(ctx context.Context, ref session.Ref, add []session.Subscription, remove []string) error {
	id := h.ShardOf(ref.Client)
	a := make(await, 1)
	h.submit(id, session.AppendSubscribe(nil, ref, add, remove), a.done)
	if _, err := a.wait(ctx); err != nil {
		return err
	}
	for i := range add {
		if !h.covered(id, add[i].Filter) {
			return h.shards.Settled(ctx, id)
		}
	}
	return nil
}

// covered reports whether every message of QoS 1 and 2 under a filter goes to the
// shard by itself, so that nobody needs to know of the filter: a device's commands,
// when the client has the device's id. Telemetry is not sent there by itself.
func (h *Hub) covered(id telemetry.ShardID, filter string) bool {
	home := session.HomeOf(filter)
	return commandTopic(filter) && telemetry.ShardOf(home, h.shards.Count()) == id && !session.Matches(filter, "devices/"+home+"/telemetry")
}

// commandTopic reports whether a topic or filter is one below a device.
func commandTopic(topic string) bool {
	return session.HomeOf(topic) != "" && session.HomeOf(topic) != topic
}

// Ack says that a queued message is the client's.
func (h *Hub) Ack(ref session.Ref, seq uint64) {
	h.submit(h.ShardOf(ref.Client), session.AppendAck(nil, ref, seq), h.fencing(ref, nil))
}

// Release says that the client has a message of QoS 2; done is called when that is
// certain, and not otherwise.
func (h *Hub) Release(ref session.Ref, seq uint64, done func()) {
	h.submit(h.ShardOf(ref.Client), session.AppendRelease(nil, ref, seq), h.fencing(ref, func([]byte) { done() }))
}

// PublishOnce publishes a message that the client sent with QoS 2 under a packet id,
// once, however often and on whichever node it is sent, until Forget. done is
// called exactly once, as by Publish.
func (h *Hub) PublishOnce(ref session.Ref, id uint16, m *session.Message, done func(error)) {
	h.receive(ref, id, func(number uint64, delivered bool, err error) {
		if err != nil || delivered {
			done(err)
			return
		}
		h.Publish(m, session.Key{Client: ref.Client, Number: number}, func(err error) {
			if err != nil {
				done(err)
				return
			}
			h.submit(h.ShardOf(ref.Client), session.AppendDelivered(nil, ref, id), func(a session.Answer, err error) {
				if err == nil {
					err = a.Status.Err()
				}
				done(err)
			})
		})
	})
}

// receive numbers a publish of QoS 2.
func (h *Hub) receive(ref session.Ref, id uint16, done func(number uint64, delivered bool, err error)) {
	h.submit(h.ShardOf(ref.Client), session.AppendReceive(nil, ref, id), func(a session.Answer, err error) {
		if err == nil {
			err = a.Status.Err()
		}
		if err != nil {
			done(0, false, err)
			return
		}
		done(session.DecodeReceived(a.Body))
	})
}

// Forget ends a publish of QoS 2; done is called when that is certain.
func (h *Hub) Forget(ref session.Ref, id uint16, done func()) {
	h.submit(h.ShardOf(ref.Client), session.AppendForget(nil, ref, id), h.fencing(ref, func([]byte) { done() }))
}

// Enqueue puts a message into a durable session's queue.
func (h *Hub) Enqueue(ref session.Ref, m *session.Message, qos byte, retain bool, ids []uint32) {
	h.submitMessage(m.Urgent(), h.ShardOf(ref.Client), session.AppendEnqueue(nil, ref, m, qos, retain, ids), h.fencing(ref, nil))
}

// Attach tells the shard, after it was out of reach, that the client is still here.
func (h *Hub) Attach(ref session.Ref) {
	h.submit(h.ShardOf(ref.Client), session.AppendAttach(nil, ref), h.fencing(ref, nil))
}

// fencing closes the connection of a session that is another's by now.
func (h *Hub) fencing(ref session.Ref, ok func([]byte)) func(session.Answer, error) {
	return func(a session.Answer, err error) {
		switch {
		case err == nil && a.Status == session.StatusFenced:
			h.client().Fence(ref)
		case err == nil && a.Status == session.StatusOK && ok != nil:
			ok(a.Body)
		}
	}
}

// Fetch gets what is queued for a session from a number on. done is called once, on
// another goroutine, unless the session is fenced or the hub ends.
func (h *Hub) Fetch(ref session.Ref, from uint64, done func(items []session.Item, last uint64)) {
	h.spawn(func() {
		id := h.ShardOf(ref.Client)
		for h.ctx.Err() == nil {
			ctx, cancel := context.WithTimeout(h.ctx, fetchTimeout)
			items, last, err := h.shards.Fetch(ctx, id, ref, from)
			cancel()
			if err == nil {
				done(items, last)
				return
			}
			if h.shards.Fenced(err) {
				h.client().Fence(ref)
				return
			}
			h.log.Debug("queue of a session not fetched yet", "client", ref.Client, "err", err)
			select {
			case <-h.ctx.Done():
			case <-time.After(laneRetryMax):
			}
		}
	})
}

const fetchTimeout = 5 * time.Second

// Retained lists the retained messages under a filter, wherever they live.
func (h *Hub) Retained(ctx context.Context, filter string) ([]*session.Message, error) {
	return h.shards.Retained(ctx, filter)
}

// Publish gives m to all who are entitled to it: durable sessions and the retained
// message of its topic first, through the logs, and then the clients that are
// connected to any node. done is called exactly once, not before m is safe for
// those who are away; after an error, which may be session.ErrFull for a message
// that is to be retained, nothing has been delivered. Messages of one goroutine on
// one topic stay in order. What is published on a topic of telemetry is taken to be
// committed: it waits for its readers' shards as long as their leaders are heard, and no
// longer.
func (h *Hub) Publish(m *session.Message, key session.Key, done func(error)) {
	free := m.QoS == 0 || committed(m) && h.mayFollow(time.Now())
	if !free && !h.mayRoute(m, key, done) {
		return
	}
	h.route(m, key, done)
}

func (h *Hub) route(m *session.Message, key session.Key, done func(error)) {
	r := h.routes.find(m.Topic, key.Print(), h.reachable)
	n := h.shards.Count()
	if m.QoS > 0 && commandTopic(m.Topic) && telemetry.ParseTopic(m.Topic).Kind == telemetry.TopicOther {
		r.toShard(telemetry.ShardOf(session.HomeOf(m.Topic), n))
	}
	if m.QoS == 0 {
		r.onlyGroups()
	}
	if !m.Retain {
		h.toShards(&r, m, key, done)
		return
	}
	home := telemetry.ShardOf(session.HomeOf(m.Topic), n)
	groups := r.shards[home]
	delete(r.shards, home)
	h.submitMessage(m.Urgent(), home, session.AppendMessage(nil, m, groups, key, true), func(a session.Answer, err error) {
		if err == nil {
			err = a.Status.Err()
		}
		if err != nil {
			done(err)
			return
		}
		h.toShards(&r, m, key, done)
	})
}

// toShards puts m into the logs of the shards that want it, and then hands it to
// the nodes.
func (h *Hub) toShards(r *route, m *session.Message, key session.Key, done func(error)) {
	if len(r.shards) == 0 {
		h.toNodes(r, m, key)
		done(nil)
		return
	}
	if committed(m) {
		h.follow(r, m, key, done)
		return
	}
	g, urgent := &gathering{left: len(r.shards)}, m.Urgent()
	for id, groups := range r.shards {
		h.submitMessage(urgent, id, session.AppendMessage(nil, m, groups, key, false), func(a session.Answer, err error) {
			if err == nil {
				err = a.Status.Err()
			}
			if last, err := g.one(err); last {
				if err == nil {
					h.toNodes(r, m, key)
				}
				done(err)
			}
		})
	}
}

func (h *Hub) toNodes(r *route, m *session.Message, key session.Key) {
	for id, groups := range r.peers {
		if p := h.peer(id); p != nil {
			p.forward(m, groups, key.Print())
		}
	}
	h.handOver(m, r.local, key.Print())
}

// SendWill publishes a will that is due.
func (h *Hub) sendWill(id telemetry.ShardID, w session.Will) {
	h.client().Will(w.Client, w.Message, func(err error) {
		if err == nil || errors.Is(err, session.ErrFull) {
			h.submit(id, session.AppendWillSent(nil, w.ID), func(session.Answer, error) { h.willDone(id, w.ID) })
			return
		}
		h.willDone(id, w.ID)
	})
}
