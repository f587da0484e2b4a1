package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The schema of PostgreSQL has the versions of SQLite's. It goes forward only, under an
// advisory lock and in one transaction, so that a migration happens completely or not at
// all. Brokers are replaced one by one: each version serves the programs of the version
// before, too, and the row of schema_version states the oldest program that may still run.

// oldestProgram is the oldest version of the schema whose programs work with this one. Raise
// it only when no supported program is older: see CONTRIBUTING.md.
const oldestProgram = 13

const schemaTables = `
CREATE TABLE schema_version (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, oldest INTEGER NOT NULL, migrated TIMESTAMPTZ NOT NULL);
`

// logGuards make the records of the log final for everyone, the owner of the tables
// included. Only texts can be erased, whose hashes stay in the records: erase_text does so
// with the rights of the owner.
const logGuards = `
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	IF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'records' AND to_jsonb(NEW) - 'openings' = to_jsonb(OLD) - 'openings' AND to_jsonb(NEW) -> 'openings' = 'null' THEN
		RETURN NEW;
	END IF;
	RAISE EXCEPTION 'rows of % are never changed or deleted', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER records_final BEFORE UPDATE OR DELETE ON records FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER records_kept BEFORE TRUNCATE ON records FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER logs_final BEFORE UPDATE OR DELETE ON logs FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER logs_kept BEFORE TRUNCATE ON logs FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE records ENABLE ALWAYS TRIGGER records_final, ENABLE ALWAYS TRIGGER records_kept;
ALTER TABLE logs ENABLE ALWAYS TRIGGER logs_final, ENABLE ALWAYS TRIGGER logs_kept;
CREATE FUNCTION erase_text(record_id bigint) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = SCHEMA_NAME, pg_temp
	AS 'UPDATE records SET openings = NULL WHERE id = record_id AND openings IS NOT NULL';
REVOKE ALL ON FUNCTION erase_text(bigint), refuse_change() FROM PUBLIC;
`

// postgresMigrations are what later versions add to PostgreSQL only, by version.
var postgresMigrations = map[int]string{}

// migrationLock is the advisory lock of migrations, for one program at a time.
const migrationLock = 0x6163636573736272 // "accessbr"

// migrationLasts bounds a migration, which may build an index of a large table.
const migrationLasts = 6 * time.Hour

// A postgresSchema is the state of the schema of a database.
type postgresSchema struct {
	name    string   // of the schema of PostgreSQL, in which the tables are
	role    string   // that reads it
	tables  []string // all of them, except those of extensions
	version int      // 0: there is none
	oldest  int      // the oldest program
}

// ErrNoSchema means that a database has no tables, or tables of an older version, and that
// the role must not create them.
var ErrNoSchema = errors.New("the schema has to be migrated")

// readSchema returns the state of the schema, and an error for one that is not a
// broker's or not complete.
func readSchema(ctx context.Context, db queryer) (*postgresSchema, error) {
	s := &postgresSchema{}
	var name sql.NullString
	if err := db.QueryRowContext(ctx, "SELECT current_schema(), CAST(current_user AS text)").Scan(&name, &s.role); err != nil {
		return nil, fmt.Errorf("reading the schema: %w", err)
	}
	if s.name = name.String; s.name == "" {
		return nil, errors.New("the role has no schema to use: its search_path names none that exists, or the role lacks USAGE on it (GRANT USAGE ON SCHEMA public)")
	}
	const query = `SELECT CAST(relname AS text) FROM pg_catalog.pg_class c WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
		AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') ORDER BY 1`
	err := each(ctx, db, query, nil, func(rows *sql.Rows) error {
		var table string
		err := rows.Scan(&table)
		s.tables = append(s.tables, table)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the schema: %w", err)
	}
	return s, s.readVersion(ctx, db)
}

// readVersion reads the version, and refuses a schema that is another program's or not
// complete.
func (s *postgresSchema) readVersion(ctx context.Context, db queryer) error {
	if len(s.tables) == 0 {
		return nil
	}
	own := 0
	if s.has("schema_version") {
		const columns = "SELECT count(*) FROM pg_catalog.pg_attribute WHERE attrelid = 'schema_version'::regclass AND attname IN ('one', 'version', 'oldest', 'migrated')"
		if err := db.QueryRowContext(ctx, columns).Scan(&own); err != nil {
			return fmt.Errorf("reading the schema version: %w", err)
		}
	}
	if own != 4 {
		return s.another()
	}
	err := db.QueryRowContext(ctx, "SELECT version, oldest FROM schema_version").Scan(&s.version, &s.oldest)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("the schema %q is half migrated or half restored: it has tables of a broker and states no version; restore a whole backup, or use an empty database", s.name)
	}
	if sqlState(err) == "42501" {
		return fmt.Errorf("the role %q lacks SELECT on schema_version: run as the owner of the tables %s", s.role, migrateCommand(s.role))
	}
	if err != nil {
		return fmt.Errorf("reading the schema version: %w", err)
	}
	return s.checkComplete()
}

func (s *postgresSchema) has(table string) bool { return slices.Contains(s.tables, table) }

// another is the error of a schema without a version.
func (s *postgresSchema) another() error {
	if s.has("records") && s.has("head") {
		return fmt.Errorf("the schema %q is half migrated or half restored: it has tables of a broker and states no version; restore a whole backup, or use an empty database", s.name)
	}
	shown := s.tables[:min(len(s.tables), 5)]
	more := ""
	if n := len(s.tables) - len(shown); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Errorf("the schema %q holds something else (%s%s): create a database for the broker alone", s.name, strings.Join(shown, ", "), more)
}

// checkComplete compares the tables with those of the version.
func (s *postgresSchema) checkComplete() error {
	for _, table := range tablesUntil(s.version) {
		if !s.has(table) {
			return fmt.Errorf("the schema %q is half migrated or half restored: it states version %d and lacks the table %s; restore a whole backup, or use an empty database", s.name, s.version, table)
		}
	}
	return nil
}

// changesTables matches the statements of migrations that create and drop tables.
var changesTables = regexp.MustCompile(`(?m)^(CREATE|DROP) TABLE (\w+)`)

// tablesUntil returns the tables that a version has, as far as this program knows.
func tablesUntil(version int) (list []string) {
	texts := slices.Concat(migrations[:min(version, len(migrations))], postgresTables)
	for v := range postgresMigrations {
		if v <= version {
			texts = append(texts, postgresMigrations[v])
		}
	}
	return tablesOf(texts)
}

// commonTables returns the tables that both databases have.
func commonTables() []string { return tablesOf(migrations) }

// tablesOf returns the tables that migrations leave, sorted.
func tablesOf(texts []string) (list []string) {
	for _, text := range texts {
		for _, m := range changesTables.FindAllStringSubmatch(text, -1) {
			if m[1] == "CREATE" {
				list = append(list, m[2])
			} else {
				list = slices.DeleteFunc(list, func(table string) bool { return table == m[2] })
			}
		}
	}
	slices.Sort(list)
	return list
}

// check returns an error if this program must not use the schema as it is. It is
// ErrNoSchema if a migration helps.
func (s *postgresSchema) check() error {
	switch {
	case s.version == 0:
		return fmt.Errorf("%w: the database is empty", ErrNoSchema)
	case s.version < len(migrations):
		return fmt.Errorf("%w: it has version %d, and this program needs %d", ErrNoSchema, s.version, len(migrations))
	case s.oldest > len(migrations):
		return fmt.Errorf("the database has schema version %d, which programs of schema version %d and newer can use, and this program has version %d: run a newer program", s.version, s.oldest, len(migrations))
	}
	return nil
}

// migratePostgres brings the schema up to date, in one transaction. It reports whether
// there was none.
func migratePostgres(ctx context.Context, db *sql.DB) (created bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, migrationLasts)
	defer cancel()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback() }() // no effect after Commit
	// Another replica may be migrating: it is waited for. A running query that uses a table
	// is not, for long: the migration would make all later queries wait behind itself.
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock(%d); SET LOCAL lock_timeout = '10s'", migrationLock)); err != nil {
		return false, fmt.Errorf("waiting for other migrations: %w", err)
	}
	s, err := readSchema(ctx, tx)
	if err != nil {
		return false, err
	}
	if err := s.check(); !errors.Is(err, ErrNoSchema) {
		return false, err
	}
	if err := s.migrate(ctx, tx); err != nil {
		return false, err
	}
	const note = "INSERT INTO schema_version VALUES (1, ?, ?, now()) ON CONFLICT (one) DO UPDATE SET version = excluded.version, oldest = excluded.oldest, migrated = now()"
	if _, err := tx.ExecContext(ctx, note, len(migrations), oldestProgram); err != nil {
		return false, fmt.Errorf("noting the schema version: %w", err)
	}
	roles, err := grantedRoles(ctx, tx)
	for _, role := range roles { // new tables need the rights of the old ones
		err = errors.Join(err, grant(ctx, tx, role))
	}
	if err != nil {
		return false, err
	}
	return s.version == 0, tx.Commit()
}

// migrate creates the tables, or brings them to the newest version.
func (s *postgresSchema) migrate(ctx context.Context, tx *sql.Tx) error {
	if s.version == 0 {
		if err := createPostgres(ctx, tx); err != nil {
			return err
		}
		guards := strings.ReplaceAll(logGuards, "SCHEMA_NAME", pgx.Identifier{s.name}.Sanitize())
		if _, err := tx.ExecContext(ctx, guards); err != nil {
			return fmt.Errorf("protecting the log: %w", err)
		}
		return nil
	}
	for v := s.version + 1; v <= len(migrations); v++ {
		if err := migratePostgresTo(ctx, tx, v); err != nil {
			return fmt.Errorf("migrating the database from schema version %d to %d: %w", v-1, v, err)
		}
	}
	return nil
}

func migratePostgresTo(ctx context.Context, tx *sql.Tx, version int) error {
	for _, text := range []string{migrations[version-1], postgresMigrations[version]} {
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return err
		}
	}
	if fill := fills[version]; fill != nil {
		return fill(ctx, tx)
	}
	return nil
}
