package pubsub

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/session"
	"github.com/sluice-iot/sluice/telemetry"
)

// Alone is the hub of a broker without other nodes and without a log, for programs
// and tests that embed one broker: its sessions end with the process.
func Alone(logger *slog.Logger) (*Hub, error) {
	s := &solo{state: session.New()}
	h, err := New(logger, nil, Config{Self: "alone.00000001", Epoch: 1}, nobody{}, s)
	if err != nil {
		return nil, err
	}
	s.hub = h
	h.onBeat = s.beat
	h.Lead(0, 1, nil)
	h.renewOwn(time.Now())
	return h, nil
}

// nobody is the way to other nodes where there are none.
type nobody struct{}

func (nobody) Peers() []string       { return nil }
func (nobody) Connected(string) bool { return false }
func (nobody) Call(context.Context, string, int, []byte) ([]byte, error) {
	return nil, errors.New("there is no other node")
}

// solo is one shard without a log.
type solo struct {
	hub *Hub

	turn  sync.Mutex // held while a batch is applied and acted on
	mu    sync.Mutex
	state *session.State
}

func (s *solo) Count() uint32 { return 1 }

func (s *solo) Submit(_ telemetry.ShardID, batch []byte, done func([]byte, error)) {
	done(s.apply(batch), nil)
}

func (s *solo) apply(batch []byte) []byte {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	answer := s.state.Apply(clock.Micros(time.Now()), batch)
	e, wills := s.state.TakeEffects(), s.state.Wills()
	s.mu.Unlock()
	s.hub.Effects(0, e)
	s.hub.Wills(0, wills)
	return answer
}

func (s *solo) beat(now time.Time) {
	s.mu.Lock()
	due := s.state.NextDue()
	s.mu.Unlock()
	if due > 0 && due <= clock.Micros(now) {
		s.apply(session.AppendBatch(nil, "", 0, 0, [][]byte{session.AppendTick(nil)}))
	}
}

func (s *solo) Fetch(_ context.Context, _ telemetry.ShardID, ref session.Ref, from uint64) ([]session.Item, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Fetch(ref, from, fetchMax, newsBytesMax)
}

// fetchMax is how many items a fetch brings.
const fetchMax = 256

func (s *solo) Fenced(err error) bool { return errors.Is(err, session.ErrFenced) }

func (s *solo) Settled(context.Context, telemetry.ShardID) error { return nil }

func (s *solo) Retained(_ context.Context, filter string) ([]*session.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Retained(filter, clock.Micros(time.Now())), nil
}

func (s *solo) Leads(telemetry.ShardID) bool { return true }
