package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-iot/sluice/importer"
	"github.com/sluice-iot/sluice/node"
	"github.com/sluice-iot/sluice/store/archive"
	"github.com/sluice-iot/sluice/store/parquet"
)

type archiveCmd struct {
	Restore archiveRestoreCmd `cmd:"" help:"Bring the rows of an archive, or of a backup of the embedded store, into a cluster."`
}

type archiveRestoreCmd struct {
	apiFlag `group:"Whereto:"`
	Broker  []string `group:"Whereto:" placeholder:"HOST:PORT" help:"MQTT addresses of nodes; default: what --api says."`

	Dir     string   `group:"Wherefrom:" type:"existingdir" help:"A directory with folders of shards: a copy of the store of a node, or of several, or of an archive."`
	Config  string   `group:"Wherefrom:" type:"existingfile" help:"Or the configuration of a node that names the archive, whose keys may also get objects."`
	Cluster string   `group:"Wherefrom:" placeholder:"ID" help:"Of the cluster that made the archive; needed where the bucket has several."`
	Skip    []string `group:"Wherefrom:" placeholder:"KEY" help:"Objects to leave out, damaged ones for example."`

	Work        string `group:"Progress:" type:"path" default:"sluice-restore" help:"Directory for the position, and for one object and its messages at a time."`
	InFlight    int    `group:"Progress:" default:"512" help:"Publishes that may wait for their answer."`
	Connections int    `group:"Progress:" default:"0" help:"MQTT connections; 0: two per broker."`
}

// Help is shown with --help.
func (archiveRestoreCmd) Help() string {
	return `The rows are published again as the messages that they came in, with their own times, by
QoS 1, object after object. The cluster may have any number of shards and any store. An
interrupted restore goes on where it stopped when it is run again, and stores nothing
twice. It is meant for a cluster that does not have these rows: what is older than the
window in which repeats are recognised would be stored a second time.

Scores and anomalies are computed anew, and told to a webhook that is configured; the time
of receipt, by which retention goes, is that of the restore.

  sluice archive restore --config node.yaml --api http://new-cluster:8080
  sluice archive restore --dir /backup/n0/store`
}

// Run implements kong.
func (c *archiveRestoreCmd) Run(ctx context.Context) error {
	src, prefix, done, err := c.source(ctx)
	if err != nil {
		return err
	}
	defer done()
	objects, err := archive.Objects(ctx, src, prefix)
	if err != nil {
		return err
	}
	objects = slices.DeleteFunc(objects, func(o archive.Object) bool { return slices.Contains(c.Skip, o.Key) })
	if len(objects) == 0 {
		return errors.New("no segments there: a folder per shard is expected, shard-007/NAME.parquet; name the folder above these")
	}
	r := &restore{cmd: c, src: src, logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	imp := importCmd{apiFlag: c.apiFlag, Broker: c.Broker}
	if r.cluster, r.brokers, err = imp.target(ctx); err != nil {
		return err
	}
	if err := r.open(c.describe(prefix)); err != nil {
		return err
	}
	for i := range objects {
		if err := r.object(ctx, &objects[i], objects[:i], i+1, len(objects)); err != nil {
			return err
		}
	}
	p := &r.position
	fmt.Printf("%s rows of %d objects restored in %s messages\n", count(p.Rows), len(p.Done), count(p.Messages))
	if p.Unstored > 0 {
		return fmt.Errorf("%s messages were not stored as telemetry: see sluice quarantine list, and the lines above", count(p.Unstored))
	}
	return nil
}

func (c *archiveRestoreCmd) describe(prefix string) string {
	if c.Dir != "" {
		return c.Dir
	}
	return prefix
}

// source is where objects come from, and the prefix of their keys.
func (c *archiveRestoreCmd) source(ctx context.Context) (src archive.Source, prefix string, done func(), err error) {
	if (c.Dir == "") == (c.Config == "") {
		return nil, "", nil, errors.New("name where the rows are: --dir DIR, or --config FILE of a node with an archive")
	}
	if c.Dir != "" {
		return archive.Dir(c.Dir), "", func() {}, nil
	}
	cfg, err := node.LoadConfig(c.Config, os.Environ(), nil)
	if err != nil {
		return nil, "", nil, err
	}
	if cfg.Archive.Endpoint == "" {
		return nil, "", nil, fmt.Errorf("%s names no archive: set archive.endpoint", c.Config)
	}
	bucket, err := archive.NewS3(*cfg.Archive.S3())
	if err != nil {
		return nil, "", nil, fmt.Errorf("archive: %w", err)
	}
	prefix = cfg.Archive.Folder()
	id := c.Cluster
	if id == "" {
		if id, err = onlyCluster(ctx, bucket, prefix); err != nil {
			bucket.Close()
			return nil, "", nil, err
		}
	}
	return bucket, prefix + id + "/", bucket.Close, nil
}

// onlyCluster is the cluster whose archive is below a prefix.
func onlyCluster(ctx context.Context, src archive.Source, prefix string) (string, error) {
	keys, err := src.List(ctx, prefix)
	if err != nil {
		return "", fmt.Errorf("list the archive: %w", err)
	}
	var ids []string
	for _, k := range keys {
		if id, _, ok := strings.Cut(strings.TrimPrefix(k, prefix), "/"); ok && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	switch len(ids) {
	case 0:
		return "", fmt.Errorf("nothing is archived below %q: look at archive.bucket and archive.prefix of the configuration", prefix)
	case 1:
		return ids[0], nil
	}
	return "", fmt.Errorf("several clusters are archived there: name one with --cluster: %s", strings.Join(ids, ", "))
}

// restore is a run of the command.
type restore struct {
	cmd      *archiveRestoreCmd
	logger   *slog.Logger
	src      archive.Source
	cluster  string
	brokers  []string
	position restorePosition
}

// restorePosition is what a later run needs to know, in restore.json of the working directory.
type restorePosition struct {
	Version  int      `json:"version"` // 1
	Source   string   `json:"source"`
	Cluster  string   `json:"cluster,omitempty"` // that is restored into
	Done     []string `json:"done"`              // keys
	Rows     int64    `json:"rows"`
	Messages int64    `json:"messages"`
	Unstored int64    `json:"unstored"` // messages in quarantine or refused
}

const restoreVersion = 1

func (r *restore) path(name string) string { return filepath.Join(r.cmd.Work, name) }

// open reads the position of an earlier run.
func (r *restore) open(source string) error {
	if err := os.MkdirAll(r.cmd.Work, 0o755); err != nil {
		return fmt.Errorf("make the working directory: %w", err)
	}
	r.position = restorePosition{Version: restoreVersion, Source: source, Cluster: r.cluster}
	b, err := os.ReadFile(r.path("restore.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var was restorePosition
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	switch {
	case err != nil:
		return fmt.Errorf("read the position of the restore: %w", err)
	case was.Version != restoreVersion:
		return fmt.Errorf("%s is of another version (%d): go on with the program that wrote it", r.path("restore.json"), was.Version)
	case was.Source != source || was.Cluster != r.cluster:
		return fmt.Errorf("%s is of a restore from %s into cluster %s: use another --work", r.path("restore.json"), was.Source, was.Cluster)
	}
	r.position = was
	return nil
}

func (r *restore) save() error {
	b, err := json.Marshal(&r.position)
	if err == nil {
		err = os.WriteFile(r.path("restore.json.tmp"), b, 0o600)
	}
	if err == nil {
		err = os.Rename(r.path("restore.json.tmp"), r.path("restore.json"))
	}
	if err != nil {
		return fmt.Errorf("save the position of the restore: %w", err)
	}
	return nil
}

// object restores one object that is not done yet.
func (r *restore) object(ctx context.Context, o *archive.Object, before []archive.Object, at, of int) error {
	file := r.path(fmt.Sprintf("%s-%s.ndjson.gz", parquet.FolderName(o.Shard), strings.TrimSuffix(parquet.Name(parquet.Range{From: o.From, To: o.To}), ".parquet")))
	if slices.Contains(r.position.Done, o.Key) {
		return r.clean(file) // of a run that ended just there
	}
	if !o.Covered(before) {
		has, err := r.prepare(ctx, o, before, file)
		if err != nil {
			return fmt.Errorf("%w (leave it out with --skip %s)", err, o.Key)
		}
		if has.Messages > 0 {
			sum, err := r.publish(ctx, file)
			if err != nil {
				return err
			}
			r.position.Unstored += sum.Bad + sum.Quarantined + sum.Refused
		}
		fmt.Printf("%d of %d  %s: %s rows in %s messages\n", at, of, o.Key, count(has.Rows), count(has.Messages))
		r.position.Rows += has.Rows
		r.position.Messages += has.Messages
	}
	r.position.Done = append(r.position.Done, o.Key)
	if err := r.save(); err != nil {
		return err
	}
	return r.clean(file)
}

func (r *restore) clean(file string) error {
	for _, name := range []string{file, file + ".state"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// prepare makes the file of an object's messages. It holds the same bytes whenever it is made, so that the
// position within it is good for the next one as well.
func (r *restore) prepare(ctx context.Context, o *archive.Object, before []archive.Object, file string) (has archive.Restored, err error) {
	work := r.path("segment")
	if err := os.RemoveAll(work); err != nil {
		return has, err
	}
	if err := os.Mkdir(work, 0o755); err != nil {
		return has, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	f, err := os.Create(file)
	if err != nil {
		return has, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buffered := bufio.NewWriterSize(f, 1<<16)
	packed, err := gzip.NewWriterLevel(buffered, gzip.BestSpeed)
	if err != nil {
		return has, err
	}
	if has, err = archive.Messages(ctx, r.logger, r.src, o, before, work, packed); err != nil {
		return has, err
	}
	return has, errors.Join(packed.Close(), buffered.Flush())
}

func (r *restore) publish(ctx context.Context, file string) (sum importer.Summary, err error) {
	report := &lineReport{w: os.Stderr}
	im, err := importer.New(r.logger, importer.Config{
		Path: file, Format: importer.FormatNDJSON, State: file + ".state", Brokers: r.brokers, Cluster: r.cluster,
		InFlight: r.cmd.InFlight, Connections: r.cmd.Connections, Bad: report.bad,
	})
	if err != nil {
		return sum, err
	}
	report.bar = newBar(os.Stderr)
	stop := watchImport(im, report.bar)
	sum, err = im.Run(ctx)
	stop()
	report.bar.clear()
	report.end()
	if err != nil {
		return sum, importError(err, file)
	}
	return sum, nil
}
