package node

import (
	"context"
	"fmt"
	"time"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/internal/clock"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/telemetry"
)

// Attributes implements api.Attributes.
func (b *backend) Attributes(ctx context.Context, device string) (api.DeviceAttributes, error) {
	a, err := b.node.router.Attributes(ctx, device)
	out := api.DeviceAttributes{Revision: a.Revision, Attributes: make(map[string]string, len(a.Attributes))}
	for _, kv := range a.Attributes {
		out.Attributes[kv.Key] = kv.Value
	}
	return out, unavailable(err)
}

// PutAttributes implements api.Attributes.
func (b *backend) PutAttributes(ctx context.Context, put api.AttributesPut) (revision uint64, created bool, err error) {
	p := shard.Put{ID: put.Key, Received: clock.Micros(time.Now()), Device: put.Device, Match: shard.Tags(put.Match), NoneMatch: shard.Tags(put.NoneMatch)}
	for k, v := range put.Attributes {
		p.Attributes = append(p.Attributes, telemetry.Attribute{Key: k, Value: v})
	}
	res, err := b.node.router.PutAttributes(ctx, p)
	switch {
	case shard.IsInvalid(err):
		return 0, false, invalidInput{err}
	case err != nil:
		return 0, false, unavailable(err)
	case res.Status == shard.PutMismatch:
		return 0, false, fmt.Errorf("the attributes of device %q are not what the request wants them to be (revision %d): %w", put.Device, res.Revision, api.ErrPrecondition)
	}
	return res.Revision, res.Status == shard.PutCreated, nil
}

// invalidInput is a mistake of the caller, in the shard's words.
type invalidInput struct{ error }

// Is makes errors.Is(err, api.ErrInvalid) true.
func (invalidInput) Is(target error) bool { return target == api.ErrInvalid }
