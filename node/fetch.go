package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sluice-iot/sluice/cluster/mux"
	"github.com/sluice-iot/sluice/shard"
	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
)

// A replica that was installed from a snapshot, or that found a segment damaged,
// lacks segments which its peers have: it fetches them and verifies every row.

const (
	fetchEvery = 2 * time.Second
	fetchLook  = 250 * time.Millisecond // while replicas here are being built
	fetchMax   = 10 * time.Minute       // one range from one peer
	// segmentHeadMax bounds the description of a segment on a stream.
	segmentHeadMax = 4 << 10
)

// segmentFetcher keeps the embedded store of this node complete.
type segmentFetcher struct {
	logger *slog.Logger
	files  *parquet.Store
	mux    *mux.Mux
	host   *shard.Host
	dir    directory

	inherited bool        // an earlier incarnation has left rows
	verified  atomic.Bool // what an earlier incarnation has left was read back
}

// serve gives peers the segments they ask for.
func (f *segmentFetcher) serve() {
	f.mux.HandleStream(streamSegments, func(from string, group uint32, header []byte, s io.ReadWriteCloser) {
		var want parquet.Range
		err := json.Unmarshal(header, &want)
		if err == nil {
			err = f.send(context.Background(), s, shard.ShardOfGroup(group), want)
		}
		if err = errors.Join(err, s.Close()); err != nil {
			f.logger.Warn("send segments", "peer", from, "shard", shard.ShardOfGroup(group), "err", err)
		}
	})
}

// send writes every segment inside a range: length of its description, the
// description, and the bytes of the file.
func (f *segmentFetcher) send(ctx context.Context, w io.Writer, id telemetry.ShardID, want parquet.Range) error {
	return f.files.Export(ctx, id, want, func(seg parquet.Segment, body io.Reader) error {
		head, err := json.Marshal(seg)
		if err != nil {
			return err
		}
		if _, err := w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(head))), head...)); err != nil {
			return err
		}
		if body == nil {
			return nil
		}
		_, err = io.CopyN(w, body, seg.Bytes)
		return err
	})
}

// run looks for missing ranges until ctx ends.
func (f *segmentFetcher) run(ctx context.Context) {
	f.verify(ctx)
	tick := time.NewTicker(fetchLook)
	defer tick.Stop()
	var last time.Time
	for {
		if now := time.Now(); now.Sub(last) >= fetchEvery || f.host.Building() {
			last = now
			for id, upTo := range f.host.Stored() {
				for _, r := range f.files.Missing(id, upTo) {
					f.fetch(ctx, id, r)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// verify reads back, whole, every segment that this incarnation has not written:
// nobody has looked at them since the damage. What is bad is set aside, and then
// fetched like any other.
func (f *segmentFetcher) verify(ctx context.Context) {
	if !f.inherited {
		f.verified.Store(true)
		return
	}
	for _, id := range f.files.Shards() {
		for _, seg := range f.files.Segments(id) {
			err := f.files.Verify(ctx, seg)
			if err == nil || ctx.Err() != nil {
				continue
			}
			f.logger.Warn("segment of an earlier incarnation is damaged", "shard", id, "err", err)
			if err := f.files.SetAside(ctx, seg, err); err != nil {
				f.logger.Error("set aside damaged segment", "shard", id, "err", err)
				return
			}
		}
	}
	f.verified.Store(ctx.Err() == nil)
}

// complete implements shard.Deps.Complete.
func (f *segmentFetcher) complete(id telemetry.ShardID, upTo uint64) bool {
	return f.verified.Load() && len(f.files.Missing(id, upTo)) == 0
}

// fetch asks the other replicas, one after the other, until nothing is missing.
func (f *segmentFetcher) fetch(ctx context.Context, id telemetry.ShardID, r parquet.Range) {
	for _, peer := range f.dir.Replicas(id) {
		if peer == f.mux.Self() || !f.mux.Connected(peer) {
			continue
		}
		n, err := f.fetchFrom(ctx, peer, id, r)
		if n > 0 {
			f.logger.Info("segments fetched", "shard", id, "peer", peer, "segments", n)
			f.host.Fetched(n)
		}
		if err != nil {
			f.logger.Warn("fetch segments", "shard", id, "peer", peer, "err", err)
			continue
		}
		if n > 0 {
			return
		}
	}
}

func (f *segmentFetcher) fetchFrom(ctx context.Context, peer string, id telemetry.ShardID, r parquet.Range) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchMax)
	defer cancel()
	header, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	s, err := f.mux.OpenStream(ctx, peer, streamSegments, shard.GroupOf(id), header)
	if err != nil {
		return 0, err
	}
	defer func() { _ = s.Close() }() // everything read is verified by Install
	br := bufio.NewReader(s)
	for {
		seg, err := readSegmentHead(br)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		body := io.LimitReader(br, seg.Bytes)
		if err := f.files.Install(ctx, seg, body); err != nil {
			return n, fmt.Errorf("install segment %v: %w", seg.Range(), err)
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return n, err
		}
		n++
	}
}

func readSegmentHead(r io.Reader) (seg parquet.Segment, err error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return seg, err
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > segmentHeadMax {
		return seg, fmt.Errorf("segment description of %d bytes is over the bound of %d", n, segmentHeadMax)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return seg, fmt.Errorf("read segment description: %w", err)
	}
	return seg, json.Unmarshal(b, &seg)
}
