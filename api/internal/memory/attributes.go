package memory

import (
	"context"
	"fmt"
	"slices"

	"github.com/sluice-iot/sluice/api"
	"github.com/sluice-iot/sluice/telemetry"
)

type putAnswer struct {
	revision uint64
	created  bool
	err      error
}

// Attributes fulfils api.Attributes.
func (c *Cluster) Attributes(_ context.Context, device string) (api.DeviceAttributes, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.attributes[device]
	if !ok {
		return a, fmt.Errorf("device %q: %w", device, api.ErrNotFound)
	}
	return a, nil
}

// PutAttributes fulfils api.Attributes.
func (c *Cluster) PutAttributes(_ context.Context, put api.AttributesPut) (uint64, bool, error) {
	if h := c.hook().Put; h != nil {
		if err := h(); err != nil {
			return 0, false, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.puts[put.Key]; ok && put.Key != [16]byte{} {
		return a.revision, a.created, a.err
	}
	var a putAnswer
	a.revision, a.created, a.err = c.put(&put)
	c.puts[put.Key] = a
	return a.revision, a.created, a.err
}

func (c *Cluster) put(put *api.AttributesPut) (uint64, bool, error) {
	var list []telemetry.Attribute
	for k, v := range put.Attributes {
		list = append(list, telemetry.Attribute{Key: k, Value: v})
	}
	if err := telemetry.CheckAttributes(list); err != nil {
		return 0, false, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	now, known := c.attributes[put.Device]
	holds := func(t *api.EntityTags) bool { return known && (t.Any || slices.Contains(t.Revisions, now.Revision)) }
	if put.Match.Given && !holds(&put.Match) || put.NoneMatch.Given && holds(&put.NoneMatch) {
		return 0, false, fmt.Errorf("device %q has revision %d: %w", put.Device, now.Revision, api.ErrPrecondition)
	}
	c.next++
	c.attributes[put.Device] = api.DeviceAttributes{Revision: uint64(c.next), Attributes: put.Attributes}
	return uint64(c.next), !known, nil
}
