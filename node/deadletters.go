package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/store/postgres"
	"github.com/sluice-iot/sluice/telemetry"
)

// databaseBackend answers the API for what only a shared database has: the one of
// this node is everybody's.
type databaseBackend struct{ node *node }

// asDatabase is nil with the embedded store.
func (n *node) asDatabase() api.Database {
	if n.stores.database == nil {
		return nil
	}
	return databaseBackend{n}
}

// DeadLetters implements api.Database.
func (d databaseBackend) DeadLetters(ctx context.Context, q api.DeadLetterQuery) ([]api.DeadLetter, error) {
	found, err := d.node.stores.database.DeadLetters(ctx, postgres.LetterQuery{Device: q.Device, From: q.From, To: q.To, Before: q.Before, Limit: q.Limit})
	out := make([]api.DeadLetter, len(found))
	for i := range found {
		out[i] = apiLetter(&found[i])
	}
	return out, err
}

func apiLetter(l *postgres.DeadLetter) api.DeadLetter {
	return api.DeadLetter{
		ID: l.ID, Created: api.Time(l.Created.UnixMicro()), Shard: l.Shard, FromIndex: l.From, ToIndex: l.To,
		Kind: l.Kind, Device: l.Device, SQLState: l.SQLState, Reason: l.Reason, Content: l.Content,
	}
}

// DeadLetter implements api.Database.
func (d databaseBackend) DeadLetter(ctx context.Context, id int64) (api.DeadLetter, error) {
	l, err := d.node.stores.database.DeadLetter(ctx, id)
	return apiLetter(&l), letterError(err)
}

// ReplayDeadLetter implements api.Database.
func (d databaseBackend) ReplayDeadLetter(ctx context.Context, id int64) error {
	err := d.node.stores.database.ReplayDeadLetter(ctx, id)
	var refused *postgres.RefusedError
	if errors.As(err, &refused) || errors.Is(err, postgres.ErrNotReplayable) {
		return fmt.Errorf("%w: %w", api.ErrConflict, err)
	}
	return letterError(err)
}

// DropDeadLetter implements api.Database.
func (d databaseBackend) DropDeadLetter(ctx context.Context, id int64) error {
	return letterError(d.node.stores.database.DropDeadLetter(ctx, id))
}

func letterError(err error) error {
	if errors.Is(err, postgres.ErrNoLetter) {
		return notFound{err}
	}
	return err
}

// AcceptLoss implements api.Database.
func (d databaseBackend) AcceptLoss(ctx context.Context, id telemetry.ShardID) error {
	return unavailable(d.node.router.AcceptLoss(ctx, id))
}
