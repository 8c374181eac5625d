package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/tern/v2/migrate"

	"github.com/sluice-iot/sluice/store"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

const (
	// versionTable holds the number of the last migration.
	versionTable = "sluice_schema_version"
	// schemaVersion is that of the newest file in migrations.
	schemaVersion = 6
	// serverVersionMin is 14: the first with date_bin.
	serverVersionMin = 140000
	// migrateTimeout bounds all migrations together, which no statement timeout
	// does: an index over a large table takes its time.
	migrateTimeout = time.Hour
	// partitionLock is the advisory lock under which partitions are made; an
	// arbitrary number.
	partitionLock = 7331840215562931
)

// layout is what telemetry is.
type layout int

const (
	layoutUnknown layout = iota
	layoutHypertable
	layoutPartitioned
	layoutOther // the user's own table or view
)

// identifier is a schema name that needs no quotes anywhere.
var identifier = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)

func isUnavailable(err error) bool { return errors.Is(err, store.ErrUnavailable) }

// Migrate brings the schema up to date and returns: for an owner role of its own
// (the nodes then run with ManualMigrations and a role that only writes). It may
// run at any time, and in several processes at once.
func Migrate(ctx context.Context, logger *slog.Logger, cfg Config) error {
	if cfg.Cluster == nil {
		cfg.Cluster = func() string { return "" } // nothing here needs it
	}
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	cfg = cfg.withDefaults()
	cfg.ManualMigrations = false // this is what the nodes wait for
	cc, err := cfg.parse()
	if err != nil {
		return err
	}
	m, err := newMetrics(nil)
	if err != nil {
		return err
	}
	db := &DB{logger: logger, cfg: cfg, conn: cc, m: m}
	db.begin(ctx)
	err = db.migrateAndSettle(ctx)
	db.cancel()
	db.sockets.cut()
	db.closes.Wait()
	return err
}

func (db *DB) migrateAndSettle(ctx context.Context) error {
	if err := db.migrate(ctx); err != nil {
		return err
	}
	c, err := db.dial(ctx)
	if err != nil {
		return err
	}
	defer db.discard(c)
	l, err := db.inspect(ctx, c)
	if err != nil {
		return err
	}
	return db.settle(ctx, c, l)
}

// prepare connects, examines the server, migrates when it must, and makes the DB
// ready.
func (db *DB) prepare(ctx context.Context) error {
	c, err := db.dial(ctx)
	if err != nil {
		return err
	}
	version, err := db.examine(ctx, c)
	if err == nil && version < schemaVersion {
		db.discard(c) // tern leaves a session without our limits behind
		if db.cfg.ManualMigrations {
			return fmt.Errorf("schema version is %d, this program needs %d: migrate as the owner of the tables (sluice database migrate)", version, schemaVersion)
		}
		if err := db.migrate(ctx); err != nil {
			return err
		}
		if c, err = db.dial(ctx); err != nil {
			return err
		}
	}
	var l layout
	if err == nil {
		l, err = db.inspect(ctx, c)
	}
	if err == nil {
		err = db.settle(ctx, c, l)
		if errors.Is(err, errPolicies) && !passing(err) {
			db.logger.Warn("TimescaleDB's jobs or chunks are not what the configuration says: run sluice database migrate as the owner of the tables", "err", err)
			err = nil
		}
	}
	db.discard(c)
	if err != nil {
		return err
	}
	db.nowReady(l)
	db.announce(l, version)
	return nil
}

// settle sets up what is not part of the migrations because it follows the
// configuration.
func (db *DB) settle(ctx context.Context, c *conn, l layout) error {
	columnstore, err := db.columnstore(ctx, c, l)
	if err != nil {
		return err
	}
	db.mu.Lock()
	db.aggregates = columnstore
	db.mu.Unlock()
	if l != layoutHypertable || db.cfg.ManualMigrations {
		return nil
	}
	var policies []policy
	if columnstore {
		policies = db.policies()
	}
	if err := db.applyPolicies(ctx, c, policies); err != nil {
		return fmt.Errorf("%w: %w", errPolicies, err)
	}
	return nil
}

// errPolicies marks what a node can do without, and an owner who migrates cannot.
var errPolicies = errors.New("make TimescaleDB's jobs what the configuration says")

// examine refuses servers that cannot work and returns the version of the
// schema, 0 when there is none.
func (db *DB) examine(ctx context.Context, c *conn) (version int, err error) {
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	var number int
	var encoding string
	var standby, there bool
	err = c.QueryRow(ctx, `select current_setting('server_version_num')::int, current_setting('server_encoding'),
		pg_is_in_recovery(), to_regclass($1) is not null`, versionTable).Scan(&number, &encoding, &standby, &there)
	switch {
	case err != nil:
		return 0, fmt.Errorf("examine the server: %w", err)
	case number < serverVersionMin:
		return 0, fmt.Errorf("server version %d.%d is too old: version 14 or later is needed", number/10000, number%10000)
	case encoding != "UTF8":
		return 0, fmt.Errorf("the database is encoded as %s: create it with encoding 'UTF8'", encoding)
	case standby:
		return 0, errors.New("the server is a standby: name the primary or add target_session_attrs=read-write to the URL")
	case !there:
		return 0, nil
	}
	if err := c.QueryRow(ctx, "select version from "+versionTable).Scan(&version); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("read the schema version: %w", err)
	}
	return version, nil
}

// inspect finds out what telemetry is and which partitions it has.
func (db *DB) inspect(ctx context.Context, c *conn) (layout, error) {
	ctx, cancel := db.bounded(ctx)
	defer cancel()
	var kind string
	var hypertable bool
	err := c.QueryRow(ctx, `select relkind::text, exists (select from pg_trigger t where t.tgrelid = r.oid and t.tgname = 'ts_insert_blocker')
		from pg_class r where oid = to_regclass('telemetry')`).Scan(&kind, &hypertable)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, errors.New("table telemetry is missing although the schema version is there: restore it, or use an empty database")
	}
	if err != nil {
		return 0, fmt.Errorf("look at table telemetry: %w", err)
	}
	switch {
	case kind == "p":
		return layoutPartitioned, db.partitions.load(ctx, c)
	case hypertable || db.isHypertable(ctx, c):
		return layoutHypertable, nil
	}
	return layoutOther, nil
}

// isHypertable asks TimescaleDB, whose newer versions have no trigger to tell.
func (db *DB) isHypertable(ctx context.Context, c *conn) bool {
	var yes bool
	err := c.QueryRow(ctx, `select exists (select from timescaledb_information.hypertables
		where hypertable_name = 'telemetry' and to_regclass(format('%I.%I', hypertable_schema, hypertable_name)) = to_regclass('telemetry'))`).Scan(&yes)
	return err == nil && yes // an error: there is no TimescaleDB
}

// announce says what the database is, and what is missing in it: once, not at
// every connection.
func (db *DB) announce(l layout, version int) {
	db.mu.Lock()
	said := db.said == l
	db.said = l
	aggregates := db.aggregates
	db.mu.Unlock()
	if said {
		db.logger.Info("database is ready again")
		return
	}
	switch l {
	case layoutHypertable:
		db.logger.Info("database is ready", "telemetry", "hypertable")
		if !aggregates {
			db.logger.Warn("no continuous aggregates to be used here: this TimescaleDB has none and no columnstore (Apache edition, or an older schema), or the role may not read telemetry_1m and telemetry_1h (docs/operations.md, section 4); aggregates are computed from the readings")
		}
	case layoutPartitioned:
		db.logger.Info("database is ready", "telemetry", "partitioned table")
		db.logger.Warn("TimescaleDB is not installed in this database: no compression, aggregates are computed when they are asked for; plain partitions hold the readings")
	default:
		db.logger.Info("database is ready", "telemetry", "table or view of the user")
	}
	if version > schemaVersion {
		db.logger.Warn("the schema is newer than this program: upgrade this node", "have", version, "known", schemaVersion)
	}
}

// migrate runs what is missing, under tern's advisory lock: of several nodes one
// works and the others find it done.
func (db *DB) migrate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	c, err := pgx.ConnectConfig(ctx, db.conn)
	if err != nil {
		return err
	}
	db.m.connections.Inc()
	defer db.discard(&conn{Conn: c})
	data, err := db.templateData(ctx, c)
	if err != nil {
		return err
	}
	m, err := migrate.NewMigrator(ctx, c, data["schema"].(string)+"."+versionTable)
	if err != nil {
		return fmt.Errorf("prepare the schema version: %w", err)
	}
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return fmt.Errorf("open migrations: %w", err)
	}
	m.Data = data
	if err := m.LoadMigrations(files); err != nil {
		return fmt.Errorf("load migrations: %w", err)
	}
	m.OnStart = func(_ int32, name, _, _ string) {
		db.m.migrationsDone.Inc()
		db.logger.Info("migrating the database", "migration", name)
	}
	if err := m.Migrate(ctx); err != nil {
		var newer migrate.BadVersionError
		if errors.As(err, &newer) {
			return nil // another node of a newer version was faster
		}
		return fmt.Errorf("migrate the database: %w", err)
	}
	return nil
}

// templateData is what the migrations depend on. It creates the TimescaleDB
// extension where that is possible.
func (db *DB) templateData(ctx context.Context, c *pgx.Conn) (map[string]any, error) {
	var schema *string
	if err := c.QueryRow(ctx, "select current_schema()").Scan(&schema); err != nil {
		return nil, fmt.Errorf("find the schema: %w", err)
	}
	if schema == nil {
		return nil, errors.New("the search_path names no schema that exists: create it, or correct search_path in the URL")
	}
	if !identifier.MatchString(*schema) {
		return nil, fmt.Errorf("schema %q: use a name of lower case letters, digits and underscores", *schema)
	}
	ts, err := db.timescale(ctx, c)
	if err != nil {
		return nil, err
	}
	community := false
	if ts != "" {
		if community, err = db.community(ctx, c); err != nil {
			return nil, err
		}
	}
	return map[string]any{
		"schema": *schema, "extension": ts, "hypertable": ts != "", "columnstore": community,
		"days": int(db.cfg.Chunk / day), "lock": partitionLock, "views": aggregateViews,
	}, nil
}

// timescale returns the schema of the TimescaleDB extension, "" where there is
// none to be had.
func (db *DB) timescale(ctx context.Context, c *pgx.Conn) (string, error) {
	schema, available, err := extension(ctx, c)
	if err != nil || schema != "" || !available {
		return schema, err
	}
	failed := db.createExtension(ctx)
	if failed != nil && passing(failed) {
		return "", fmt.Errorf("create extension timescaledb: %w", failed)
	}
	if schema, _, err = extension(ctx, c); err != nil || schema != "" {
		return schema, err // made by us, or by another node meanwhile
	}
	db.logger.Warn("TimescaleDB is available but cannot be used, plain partitions take its place: load it (shared_preload_libraries) and let a superuser run CREATE EXTENSION timescaledb before the tables are made", "err", failed)
	return "", nil
}

// createExtension has a connection of its own: without the preloaded library
// the server ends the session.
func (db *DB) createExtension(ctx context.Context) error {
	c, err := pgx.ConnectConfig(ctx, db.conn)
	if err != nil {
		return err
	}
	db.m.connections.Inc()
	defer db.discard(&conn{Conn: c})
	_, err = c.Exec(ctx, "create extension if not exists timescaledb")
	return err
}

func extension(ctx context.Context, c *pgx.Conn) (schema string, available bool, err error) {
	err = c.QueryRow(ctx, `select
		coalesce((select quote_ident(n.nspname) from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname = 'timescaledb'), ''),
		exists (select from pg_available_extensions where name = 'timescaledb')`).Scan(&schema, &available)
	if err != nil {
		return "", false, fmt.Errorf("look for TimescaleDB: %w", err)
	}
	return schema, available, nil
}
