package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-iot/sluice/store/parquet"
	"github.com/sluice-iot/sluice/telemetry"
)

// Source is where archived files are read from. Its methods may block until ctx
// ends.
type Source interface {
	// List gives the keys below a prefix, in any order.
	List(ctx context.Context, prefix string) ([]string, error)
	// Get writes an object to w.
	Get(ctx context.Context, key string, w io.Writer) error
}

// Dir is a Source: a directory with the folders of shards, such as a copy of a
// node's store or of an archive. It is not changed.
type Dir string

// List implements Source.
func (d Dir) List(_ context.Context, prefix string) ([]string, error) {
	var keys []string
	err := filepath.WalkDir(string(d), func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(string(d), p)
		if key := filepath.ToSlash(rel); err == nil && strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
		return err
	})
	return keys, err
}

// Get implements Source.
func (d Dir) Get(_ context.Context, key string, w io.Writer) error {
	f, err := os.Open(filepath.Join(string(d), filepath.FromSlash(key)))
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, f.Close())
}

// Object is an archived file.
type Object struct {
	Key   string            `json:"key"`
	Shard telemetry.ShardID `json:"shard"` // of the cluster that it comes from
	From  uint64            `json:"from"`  // its range of the shard's log, exclusive
	To    uint64            `json:"to"`    // inclusive
}

// Objects lists the files of segments below a prefix, shard by shard and in the
// order of the log; of overlapping ones that begin alike the longer comes first.
func Objects(ctx context.Context, src Source, prefix string) ([]Object, error) {
	keys, err := src.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	var out []Object
	for _, k := range keys {
		r, ok := parquet.ParseName(path.Base(k))
		if !ok {
			continue
		}
		n, found := strings.CutPrefix(path.Base(path.Dir(k)), "shard-")
		shard, err := strconv.ParseUint(n, 10, 32)
		if !found || err != nil || parquet.FolderName(telemetry.ShardID(shard)) != "shard-"+n {
			continue
		}
		out = append(out, Object{Key: k, Shard: telemetry.ShardID(shard), From: r.From, To: r.To})
	}
	slices.SortFunc(out, func(a, b Object) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), cmp.Compare(a.From, b.From), cmp.Compare(b.To, a.To), strings.Compare(a.Key, b.Key))
	})
	return out, nil
}

// Covered reports whether all of an object is in objects before it in the list,
// which makes it a copy.
func (o *Object) Covered(before []Object) bool {
	for i := range before {
		if b := &before[i]; b.Shard == o.Shard && b.From <= o.From && b.To >= o.To {
			return true
		}
	}
	return false
}

// Messages reads an object and writes its rows to w as the messages that they came
// in, one JSON object a line, the same ones whenever it is done, and counts them. Flushes that lie inside objects before it are left out: two
// nodes may both have archived them. work is an empty directory for the file.
func Messages(ctx context.Context, logger *slog.Logger, src Source, o *Object, before []Object, work string, w io.Writer) (done Restored, err error) {
	file := filepath.Join(work, parquet.FolderName(o.Shard), parquet.Name(parquet.Range{From: o.From, To: o.To}))
	if err := fetch(ctx, src, o.Key, file); err != nil {
		return done, fmt.Errorf("fetch %s: %w", o.Key, err)
	}
	files, err := parquet.Open(logger, nil, parquet.Config{Dir: work})
	if err != nil {
		return done, fmt.Errorf("read %s: %w", o.Key, err)
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	if list := files.Segments(o.Shard); len(list) != 1 || list[0].To != o.To {
		return done, fmt.Errorf("read %s: it is damaged or no segment of its name", o.Key)
	}
	out := newMessageWriter(w)
	err = files.Each(ctx, o.Shard, func(b *telemetry.Batch) error {
		if flush := (Object{Shard: o.Shard, From: b.From, To: b.To}); flush.Covered(before) {
			return nil
		}
		return out.batch(b)
	})
	if err != nil {
		return done, fmt.Errorf("read %s: %w", o.Key, err)
	}
	return out.count, out.flush()
}

func fetch(ctx context.Context, src Source, key, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(src.Get(ctx, key, f), f.Close())
}
