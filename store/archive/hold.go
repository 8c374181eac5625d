package archive

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
)

// HoldConfig bounds a Hold.
type HoldConfig struct {
	Max      time.Duration // how long rows stay at most after their retention is over; > 0
	BytesMax int64         // of files that stay on this node; 0: no bound but the disk's
	// Space gives the free bytes and the size of the store's file system, < 0 when it
	// is not known; nil: it is not looked at.
	Space func() (free, size int64)
}

const (
	// spaceShare: files give way when less than a tenth of the file system is free,
	// where the log would begin to run out of it.
	spaceShare = 10
	// giveWay is how much of what was received goes at once when room is needed.
	giveWay = time.Hour
	// lateAfter is how long after their retention rows may wait for a copy without an
	// alarm: files are copied an hour after their window, in rounds of minutes.
	lateAfter = time.Hour
)

// Held is what retention would have removed from this node if the archive had it.
type Held struct {
	Shards int
	Bytes  int64
	Since  time.Time // end of the retention of the oldest rows; zero when there are none
	Until  time.Time // when these go without a copy
	Short  bool      // room is needed: they are going
}

// Late reports whether the archive is behind so far that somebody should look.
func (h *Held) Late(now time.Time) bool {
	return h.Short && h.Shards > 0 || !h.Since.IsZero() && now.Sub(h.Since) >= lateAfter
}

// Hold keeps files in a store beyond its retention until the archive has them. It
// implements parquet.Keeper; all methods may be called from any goroutine.
type Hold struct {
	log     *slog.Logger
	metrics *holdMetrics
	cfg     HoldConfig

	mu     sync.Mutex
	copied map[telemetry.ShardID][]parquet.Range // seen in the archive: ascending, apart from each other
	wanted map[telemetry.ShardID]bool            // with files that stay for want of a copy
	below  int64                                 // files received before this go, copied or not
	held   Held
}

// NewHold returns a Hold that knows of no copies yet; reg may be nil.
func NewHold(logger *slog.Logger, reg prometheus.Registerer, cfg HoldConfig) (*Hold, error) {
	if cfg.Max <= 0 || cfg.BytesMax < 0 {
		return nil, fmt.Errorf("hold for the archive for %v and %d bytes: the time must be positive, the bytes not negative", cfg.Max, cfg.BytesMax)
	}
	m, err := newHoldMetrics(reg)
	if err != nil {
		return nil, err
	}
	return &Hold{log: logger, metrics: m, cfg: cfg, copied: map[telemetry.ShardID][]parquet.Range{}, wanted: map[telemetry.ShardID]bool{}}, nil
}

// Keep implements parquet.Keeper.
func (h *Hold) Keep(seg *parquet.Segment, due, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.has(seg) {
		return false
	}
	h.wanted[seg.Shard] = true
	return now.Sub(due) < h.cfg.Max && seg.MaxReceived >= h.below
}

// Expired implements parquet.Keeper: it tells what has gone without a copy.
func (h *Hold) Expired(segs []parquet.Segment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range segs {
		seg := &segs[i]
		if seg.Rows == 0 || h.has(seg) {
			continue
		}
		h.metrics.lostRows.Add(float64(seg.Rows))
		h.log.Error("archive: rows are removed that are not in it, because it was away for too long", "shard", seg.Shard,
			"from", seg.From, "to", seg.To, "rows", seg.Rows, "received", time.UnixMicro(seg.MaxReceived).UTC())
	}
}

// has reports whether the archive has been seen to hold all of a file. mu is held.
func (h *Hold) has(seg *parquet.Segment) bool {
	list := h.copied[seg.Shard]
	i, _ := slices.BinarySearchFunc(list, seg.To, func(r parquet.Range, to uint64) int { return cmp.Compare(r.To, to) })
	return i < len(list) && list[i].From <= seg.From
}

// learn takes what the archive has of a shard.
func (h *Hold) learn(shard telemetry.ShardID, have []parquet.Range) {
	if h == nil {
		return
	}
	have = slices.Clone(have)
	slices.SortFunc(have, func(a, b parquet.Range) int { return cmp.Compare(a.From, b.From) })
	var merged []parquet.Range
	for _, r := range have {
		if n := len(merged); n > 0 && r.From <= merged[n-1].To {
			merged[n-1].To = max(merged[n-1].To, r.To)
		} else {
			merged = append(merged, r)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.copied[shard] = merged
	delete(h.wanted, shard)
}

// wants reports whether it must be known what the archive has of a shard.
func (h *Hold) wants(shard telemetry.ShardID) bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wanted[shard]
}

// State is what the last Step has found.
func (h *Hold) State() Held {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held
}

// Step looks at the files whose retention is over, as the store lists them, and
// decides whether some must go to make room: the oldest first, an hour at a time.
func (h *Hold) Step(now time.Time, overdue []parquet.Overdue) {
	free, size := int64(-1), int64(-1)
	if h.cfg.Space != nil {
		free, size = h.cfg.Space()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.held
	h.held = Held{}
	first := map[telemetry.ShardID]bool{}
	var oldest int64 // received, of the files that are first to go in their shards
	for i := range overdue {
		o := &overdue[i]
		if h.has(&o.Segment) {
			continue
		}
		h.held.Bytes += o.Bytes
		if h.held.Since.IsZero() || o.Due.Before(h.held.Since) {
			h.held.Since = o.Due
		}
		if !first[o.Shard] {
			first[o.Shard] = true
			if len(first) == 1 || o.MaxReceived < oldest {
				oldest = o.MaxReceived
			}
		}
	}
	h.held.Shards, h.below = len(first), 0
	if len(first) > 0 {
		h.held.Until = h.held.Since.Add(h.cfg.Max)
		h.held.Short = h.cfg.BytesMax > 0 && h.held.Bytes > h.cfg.BytesMax || free >= 0 && size > 0 && free < size/spaceShare
	}
	if h.held.Short {
		h.below = oldest - oldest%giveWay.Microseconds() + giveWay.Microseconds()
	}
	h.tell(now, &before)
}

// tell shows what has changed. mu is held.
func (h *Hold) tell(now time.Time, before *Held) {
	late, wasLate := h.held.Late(now), before.Late(now)
	h.metrics.heldBytes.Set(float64(h.held.Bytes))
	h.metrics.heldSeconds.Set(0)
	if !h.held.Since.IsZero() {
		h.metrics.heldSeconds.Set(max(0, now.Sub(h.held.Since).Seconds()))
	}
	if late && (!wasLate || h.held.Short != before.Short) {
		h.log.Warn("archive: rows stay beyond their retention until it has them", "bytes", h.held.Bytes, "shards", h.held.Shards,
			"since", h.held.Since.UTC(), "until", h.held.Until.UTC(), "no_room", h.held.Short)
	}
	if !late && wasLate {
		h.log.Info("archive: no rows stay beyond their retention any more")
	}
}
