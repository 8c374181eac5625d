package parquet

import (
	"container/list"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-iot/sluice/telemetry"
)

// cache keeps the files that were read last open, with their page index parsed.
type cache struct {
	max   int
	gauge prometheus.Gauge

	mu     sync.Mutex
	files  map[fileKey]*list.Element // of *cached
	recent *list.List                // most recent first
}

type fileKey struct {
	shard telemetry.ShardID
	r     Range
}

func keyOf(seg *Segment) fileKey { return fileKey{shard: seg.Shard, r: seg.Range()} }

type cached struct {
	key  fileKey
	file *segmentFile
}

func newCache(limit int, gauge prometheus.Gauge) *cache {
	return &cache{max: limit, gauge: gauge, files: map[fileKey]*list.Element{}, recent: list.New()}
}

// get returns an open file with a reference that the caller releases, or nil.
func (c *cache) get(key fileKey) *segmentFile {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.files[key]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(e)
	f := e.Value.(*cached).file
	if !f.acquire() {
		return nil
	}
	return f
}

// put gives the cache a reference of its own to f, unless the key is taken.
func (c *cache) put(key fileKey, f *segmentFile) {
	var out *segmentFile
	c.mu.Lock()
	if _, taken := c.files[key]; !taken && f.acquire() {
		c.files[key] = c.recent.PushFront(&cached{key: key, file: f})
		if c.recent.Len() > c.max {
			oldest := c.recent.Remove(c.recent.Back()).(*cached)
			delete(c.files, oldest.key)
			out = oldest.file
		}
	}
	c.gauge.Set(float64(c.recent.Len()))
	c.mu.Unlock()
	if out != nil {
		out.release()
	}
}

func (c *cache) evict(key fileKey) {
	c.mu.Lock()
	e, ok := c.files[key]
	if ok {
		c.recent.Remove(e)
		delete(c.files, key)
	}
	c.gauge.Set(float64(c.recent.Len()))
	c.mu.Unlock()
	if ok {
		e.Value.(*cached).file.release()
	}
}

func (c *cache) close() {
	c.mu.Lock()
	all := make([]*segmentFile, 0, c.recent.Len())
	for e := c.recent.Front(); e != nil; e = e.Next() {
		all = append(all, e.Value.(*cached).file)
	}
	c.recent.Init()
	clear(c.files)
	c.gauge.Set(0)
	c.mu.Unlock()
	for _, f := range all {
		f.release()
	}
}
