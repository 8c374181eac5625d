package postgres

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"

	"github.com/sluice-iot/sluice/store"
)

// ErrClosed is returned by every method after Close.
var ErrClosed = errors.New("database is closed")

// SQLSTATE codes and classes (Appendix A of the PostgreSQL documentation) that
// make a difference to us.
const (
	classConnection   = "08"
	classData         = "22"
	classIntegrity    = "23"
	classCheckOption  = "44"
	classResources    = "53"
	classLimit        = "54"
	classIntervention = "57"
	classSystem       = "58"
	classRaised       = "P0" // raise exception in a trigger of the user's

	codeBadBinary     = "22P03" // the column has another type than the schema says
	codeReadOnly      = "25006"
	codeSerialization = "40001"
	codeDeadlock      = "40P01"
	codePrivilege     = "42501"
	codeUndefined     = "42P01" // table
	codeUndefinedCol  = "42703"
	codeLockTimeout   = "55P03"
	codeStatement     = "57014" // statement timeout or a cancel request
	codePassword      = "28P01"
	codeAuthorization = "28000"
	codeNoDatabase    = "3D000"
	codeDiskFull      = "53100"
	codeMemory        = "53200"
	codeConnections   = "53300"
)

// sqlState returns the server's code of an error, "" if it is not the server's.
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	var m migrate.MigrationPgError
	if errors.As(err, &m) && m.PgError != nil {
		return m.Code
	}
	return ""
}

// refusal returns the server's complaint about the content of a row, nil for
// every other error.
func refusal(err error) *pgconn.PgError {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) < 2 || pg.Code == codeBadBinary {
		return nil
	}
	switch pg.Code[:2] {
	case classData, classIntegrity, classCheckOption, classLimit, classRaised:
		return pg
	}
	return nil
}

// retryable reports that the server undid the transaction for another's sake.
func retryable(err error) bool {
	code := sqlState(err)
	return code == codeSerialization || code == codeDeadlock
}

// passing reports that an error may go away by itself: no answer of the server
// at all, or one about its own state.
func passing(err error) bool {
	if err == nil {
		return false
	}
	code := sqlState(err)
	if code == "" {
		return true
	}
	switch code[:2] {
	case classConnection, classResources, classIntervention, classSystem:
		return true
	}
	return retryable(err) || code == codeLockTimeout || code == codeReadOnly
}

// moved reports that the server is no longer what it was when we connected: a
// standby now, or another database. Connections and schema are looked at anew.
func moved(err error) bool {
	switch sqlState(err) {
	case codeReadOnly, codeUndefined, codeUndefinedCol, codeBadBinary:
		return true
	}
	return false
}

// explain names the remedy where the code tells it, and marks what may pass.
func explain(err error) error {
	if err == nil || errors.Is(err, store.ErrUnavailable) {
		return err
	}
	code := sqlState(err)
	switch code {
	case codePrivilege:
		err = fmt.Errorf("%w: grant the role what docs/operations.md lists for a writer (section 4, Database), or let the node be the owner of the tables", err)
	case codeReadOnly:
		err = fmt.Errorf("%w: the server is a standby, name the primary or add target_session_attrs=read-write to the URL", err)
	case codeUndefined, codeUndefinedCol, codeBadBinary:
		err = fmt.Errorf("%w: the tables are not those of the migrations, restore them or use an empty database", err)
	case codeStatement:
		err = fmt.Errorf("%w: the server needs more than a minute for a batch, look at its load, its locks and triggers on its tables, or lower flush.rows_max", err)
	case codePassword, codeAuthorization:
		err = fmt.Errorf("%w: the server does not let this role in, look at its name and password in store.database and at the server's pg_hba.conf", err)
	case codeNoDatabase:
		err = fmt.Errorf("%w: create the database, or name the right one in store.database", err)
	case codeConnections:
		err = fmt.Errorf("%w: the server has no connection left, raise its max_connections (or the role's CONNECTION LIMIT) or lower store.connections of the nodes", err)
	case codeDiskFull:
		err = fmt.Errorf("%w: the server's disk is full, make room there", err)
	case codeMemory:
		err = fmt.Errorf("%w: the server is out of memory, lower flush.rows_max or give it more", err)
	default:
		if strings.HasPrefix(code, classResources) {
			err = fmt.Errorf("%w: the server has no room or connection left", err)
		}
	}
	if passing(err) {
		return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return err
}
