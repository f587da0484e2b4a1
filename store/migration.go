package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
)

// A Migration is what Migrate did.
type Migration struct {
	Database string   `json:"database"` // its URL, without the password
	From     int      `json:"from"`     // the schema version before; 0: there was none
	To       int      `json:"to"`       // that of this program
	Granted  []string `json:"granted,omitempty"`
}

// Migrate brings the schema of a database to this program's version, apart from serving. The
// roles, which only PostgreSQL has, get the rights that a broker needs.
func Migrate(ctx context.Context, url string, roles []string) (*Migration, error) {
	m := &Migration{Database: Redacted(url), To: len(migrations)}
	if !isPostgres(url) {
		if len(roles) > 0 {
			return nil, errors.New("a database of SQLite has no roles: its file's mode protects it")
		}
		return m, m.migrateFile(ctx, url)
	}
	if _, err := parsePostgres(url); err != nil {
		return nil, err
	}
	db := openPostgres(postgresConfig{settings: func() (*pgx.ConnConfig, error) { return parsePostgres(url) }})
	err := m.migrateServer(ctx, db, roles)
	if err = errors.Join(err, db.Close()); err != nil {
		return nil, fmt.Errorf("migrating %s: %w", m.Database, err)
	}
	return m, nil
}

func (m *Migration) migrateServer(ctx context.Context, db *sql.DB, roles []string) error {
	server, err := readServer(ctx, db)
	if err != nil {
		return err
	}
	schema, err := readSchema(ctx, db)
	if err := errors.Join(err, server.writable()); err != nil {
		return err
	}
	m.From = schema.version
	if may, err := schema.mayMigrate(ctx, db); err != nil || !may {
		return errors.Join(err, fmt.Errorf("the role %q does not own the tables and may not create them: use the role that owns them (in a new database, GRANT CREATE ON SCHEMA %s)", server.user, pgx.Identifier{schema.name}.Sanitize()))
	}
	if _, err := migratePostgres(ctx, db); err != nil {
		return err
	}
	for _, role := range roles {
		if err := grantTo(ctx, db, role); err != nil {
			return err
		}
	}
	m.Granted, err = grantedRoles(ctx, db)
	return err
}

// migrateFile migrates a database of SQLite, which no broker may be using.
func (m *Migration) migrateFile(ctx context.Context, url string) (err error) {
	path, err := sqlitePath(url)
	if err != nil {
		return err
	}
	if m.From, err = fileVersion(ctx, path); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	s, err := Open(ctx, Config{URL: url, Existing: true})
	if err != nil {
		return err
	}
	return s.Close()
}

// fileVersion returns the schema version of a database of SQLite; 0 if there is none.
func fileVersion(ctx context.Context, path string) (version int, err error) {
	if !isDatabaseFileAt(path) {
		return 0, nil
	}
	name := dsn(path, "ro", "query_only(1)")
	if !inUse(path) {
		name += "&immutable=1" // so that SQLite creates no files next to it
	}
	db, err := sql.Open(driverName, name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return version, db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
}

// isDatabaseFileAt reports whether there is a database of SQLite at a path.
func isDatabaseFileAt(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	start := make([]byte, HeaderSize)
	n, _ := f.Read(start)
	return IsDatabase(start[:n])
}
