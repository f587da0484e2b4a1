package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/internal/storetest"
)

// emptyPostgres creates an empty database and returns its URL, for a superuser.
func emptyPostgres(t *testing.T, with string) *postgresURL {
	t.Helper()
	db := postgresPool(t, nil)
	u, err := parsePostgresURL(storetest.OnlyPostgres(t))
	if err != nil {
		t.Fatal(err)
	}
	u.database = "migrate_" + strings.ToLower(rand.Text()[:10])
	name := pgx.Identifier{u.database}.Sanitize()
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE "+name+" "+with); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return u
}

// connectPostgres returns a pool for the database of a URL.
func connectPostgres(t *testing.T, u *postgresURL) *sql.DB {
	t.Helper()
	text := u.format(u.password)
	db := openPostgres(postgresConfig{settings: func() (*pgx.ConnConfig, error) { return parsePostgres(text) }})
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// createRole creates a role with a name that needs quotes, and returns the URL with it.
func createRole(t *testing.T, db *sql.DB, u *postgresURL, attributes string) *postgresURL {
	t.Helper()
	role := *u
	role.user, role.password = `o'b"roker `+strings.ToLower(rand.Text()[:8]), secret
	quoted := pgx.Identifier{role.user}.Sanitize()
	if _, err := db.ExecContext(t.Context(), fmt.Sprintf("CREATE ROLE %s LOGIN %s PASSWORD '%s'", quoted, attributes, secret)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), fmt.Sprintf("DROP OWNED BY %[1]s; DROP ROLE %[1]s", quoted)); err != nil {
			t.Error(err)
		}
	})
	return &role
}

// quiet is a log of nothing.
var quiet = slog.New(slog.DiscardHandler)

func TestPostgresMigratesOnce(t *testing.T) {
	u := emptyPostgres(t, "")
	const brokers = 5
	var wait sync.WaitGroup
	created, errs := make([]bool, brokers), make([]error, brokers)
	for i := range brokers {
		db := connectPostgres(t, u)
		wait.Go(func() { created[i], errs[i] = preparePostgres(context.Background(), db, false, quiet) })
	}
	wait.Wait()
	n := 0
	for i := range brokers {
		if created[i] {
			n++
		}
	}
	if err := errors.Join(errs...); err != nil || n != 1 {
		t.Errorf("%d brokers created the schema, %v", n, err)
	}
	db := connectPostgres(t, u)
	s, err := readSchema(t.Context(), db)
	if err != nil || s.version != len(migrations) || s.oldest != oldestProgram {
		t.Errorf("got %+v, %v", s, err)
	}
	if got, want := fmt.Sprint(s.tables), fmt.Sprint(tablesUntil(len(migrations))); got != want {
		t.Errorf("got the tables %s, want %s", got, want)
	}
}

func TestPostgresRefusesOtherDatabases(t *testing.T) {
	for _, test := range []struct{ name, with, statements, says string }{
		{"something else", "", "CREATE TABLE invoices (id int); CREATE VIEW v AS SELECT 1", `holds something else (invoices, v): create a database for the broker alone`},
		{"many tables", "", "CREATE TABLE a (); CREATE TABLE b (); CREATE TABLE c (); CREATE TABLE d (); CREATE TABLE e (); CREATE TABLE f ()", `(a, b, c, d, e and 1 more)`},
		{"another program's schema_version", "", "CREATE TABLE schema_version (installed_rank int, version text)", "holds something else (schema_version)"},
		{"no version", "", migrated + "DROP TABLE schema_version", "half migrated or half restored: it has tables of a broker and states no version"},
		{"an empty version", "", migrated + "DELETE FROM schema_version", "half migrated or half restored: it has tables of a broker and states no version"},
		{"a lost table", "", migrated + "DROP TABLE leases", "lacks the table leases"},
		{"newer and incompatible", "", migrated + "UPDATE schema_version SET version = 999, oldest = 998", "schema version 999, which programs of schema version 998 and newer can use, and this program has version"},
		{"newer and half migrated", "", migrated + "UPDATE schema_version SET version = 999; DROP TABLE live", "states version 999 and lacks the table live"},
		{"a removed guard", "", migrated + "DROP TRIGGER records_final ON records", "a trigger that protects the records of the log was removed or disabled"},
		{"a disabled guard", "", migrated + "ALTER TABLE records DISABLE TRIGGER records_kept", "a trigger that protects the records of the log was removed or disabled"},
		{"SQL_ASCII", "ENCODING 'SQL_ASCII' TEMPLATE template0", "", "has the encoding SQL_ASCII, and the broker needs UTF8"},
		{"LATIN1", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0", "", "has the encoding LATIN1"},
		{"no schema", "", "DROP SCHEMA public", "no schema to use"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := emptyPostgres(t, test.with)
			db := connectPostgres(t, u)
			statements, isMigrated := strings.CutPrefix(test.statements, migrated)
			if isMigrated {
				if _, err := migratePostgres(t.Context(), db); err != nil {
					t.Fatal(err)
				}
			}
			if statements != "" {
				if _, err := db.ExecContext(t.Context(), statements); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := preparePostgres(t.Context(), connectPostgres(t, u), false, quiet); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %s", err, test.says)
			}
		})
	}
}

const migrated = "migrated:"

func TestPostgresAcceptsANewerCompatibleSchema(t *testing.T) {
	db := connectPostgres(t, emptyPostgres(t, ""))
	if _, err := migratePostgres(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "UPDATE schema_version SET version = version + 1; CREATE TABLE later (id int)"); err != nil {
		t.Fatal(err)
	}
	if _, err := preparePostgres(t.Context(), db, true, quiet); err != nil {
		t.Error(err)
	}
}

func TestPostgresMigratesForward(t *testing.T) {
	db := connectPostgres(t, emptyPostgres(t, ""))
	if _, err := migratePostgres(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	old := len(migrations)
	defer func(list []string) { migrations = list }(migrations)
	migrations = append(migrations[:old:old], "CREATE TABLE later (id INTEGER PRIMARY KEY, note TEXT)")
	if s, err := readSchema(t.Context(), db); err != nil || !errors.Is(s.check(), ErrNoSchema) || !strings.Contains(s.check().Error(), fmt.Sprintf("it has version %d, and this program needs %d", old, old+1)) {
		t.Fatal(s, err)
	}
	migrations[old] = "CREATE TABLE later (id INTEGER PRIMARY KEY); CREATE TABLE records (id INTEGER)"
	if _, err := migratePostgres(t.Context(), db); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("from schema version %d to %d", old, old+1)) {
		t.Errorf("a migration that fails: %v", err)
	}
	if s, err := readSchema(t.Context(), db); err != nil || s.version != old || s.has("later") {
		t.Errorf("a migration that failed left %+v, %v", s, err)
	}
	migrations[old] = "CREATE TABLE later (id INTEGER PRIMARY KEY)"
	if created, err := preparePostgres(t.Context(), db, true, quiet); err != nil || created {
		t.Error(created, err)
	}
	if s, err := readSchema(t.Context(), db); err != nil || s.version != old+1 || !s.has("later") {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestBrokersRoleCannotChangeTheLog(t *testing.T) {
	u := emptyPostgres(t, "")
	owner := connectPostgres(t, u)
	role := createRole(t, owner, u, "")
	broker := connectPostgres(t, role)
	ctx := t.Context()
	if _, err := owner.ExecContext(ctx, "REVOKE CREATE ON SCHEMA public FROM PUBLIC"); err != nil { // as PostgreSQL 15 does
		t.Fatal(err)
	}
	if _, err := preparePostgres(ctx, broker, false, quiet); err == nil || !strings.Contains(err.Error(), "the database is empty, and the role") || !strings.Contains(err.Error(), "broker store migrate --store URL --grant") {
		t.Errorf("an empty database: %v", err)
	}
	if _, err := migratePostgres(ctx, owner); err != nil {
		t.Fatal(err)
	}
	if _, err := preparePostgres(ctx, broker, false, quiet); err == nil {
		t.Error("a role without rights is accepted")
	}
	if err := grantTo(ctx, owner, role.user); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	if _, err := preparePostgres(ctx, broker, true, slog.New(slog.NewTextHandler(&log, nil))); err != nil || strings.Contains(log.String(), "more rights") {
		t.Errorf("got %v, %s", err, &log)
	}
	tries(t, broker, owner, pgx.Identifier{u.user}.Sanitize())
	if _, err := owner.ExecContext(ctx, "REVOKE INSERT ON records FROM "+pgx.Identifier{role.user}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	if _, err := preparePostgres(ctx, broker, true, quiet); err == nil || !strings.Contains(err.Error(), "lacks INSERT on records: run as the owner of the tables") {
		t.Errorf("a missing right: %v", err)
	}
}

// tries tries to change the log as the broker's role.
func tries(t *testing.T, broker, owner *sql.DB, name string) {
	t.Helper()
	ctx := t.Context()
	if _, err := broker.ExecContext(ctx, "INSERT INTO logs (epoch, origin, public) VALUES (1, 'o', 'p'); INSERT INTO records (id, leaf, hashes, openings) VALUES (1, '\\x01', '\\x02', '\\x03'), (2, '\\x01', '\\x02', '\\x03')"); err != nil {
		t.Fatal(err)
	}
	const denied = "42501" // insufficient_privilege
	for _, statement := range []string{
		"UPDATE records SET leaf = '\\x00'", "UPDATE records SET openings = NULL", "UPDATE records SET id = 3 WHERE id = 1", "DELETE FROM records", "TRUNCATE records", "DROP TABLE records",
		"INSERT INTO records VALUES (1, '', '', '') ON CONFLICT (id) DO UPDATE SET leaf = ''",
		"UPDATE logs SET origin = 'x'", "DELETE FROM logs", "TRUNCATE logs", "DELETE FROM head", "INSERT INTO head SELECT * FROM head", "TRUNCATE head", "UPDATE rule_files SET content = ''", "DELETE FROM rule_files",
		"UPDATE schema_version SET version = 1", "DELETE FROM schema_version",
		"DROP TRIGGER records_final ON records", "ALTER TABLE records DISABLE TRIGGER ALL", "ALTER TABLE records DISABLE TRIGGER records_final", "ALTER TABLE records RENAME TO old", "ALTER TABLE records OWNER TO CURRENT_USER",
		"DROP FUNCTION refuse_change() CASCADE", "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'", "ALTER FUNCTION erase_text(bigint) SECURITY INVOKER", "SELECT refuse_change()",
		"SET ROLE " + name, "SET SESSION AUTHORIZATION " + name, "SET session_replication_role = replica", "CREATE TRIGGER t BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION refuse_change()",
		"CREATE RULE r AS ON INSERT TO records DO INSTEAD NOTHING", "CREATE TABLE shadow (id int)", "CREATE SCHEMA shadow", "CREATE ROLE other", "GRANT ALL ON records TO PUBLIC; DELETE FROM records", "CREATE INDEX ON records (leaf)", "COPY records TO PROGRAM 'cat'",
	} {
		if _, err := broker.ExecContext(ctx, statement); sqlState(err) != denied {
			t.Errorf("%s: got %v, want a refusal", statement, err)
		}
	}
	for _, statement := range []string{
		"UPDATE records SET leaf = '\\x00'", "UPDATE records SET openings = '\\x00'", "UPDATE records SET openings = NULL, leaf = '\\x00'", "DELETE FROM records", "TRUNCATE records", "DELETE FROM logs", "UPDATE logs SET public = ''",
		"SET session_replication_role = replica; DELETE FROM records",
	} {
		if _, err := owner.ExecContext(ctx, "BEGIN; "+statement+"; COMMIT"); sqlState(err) != denied {
			t.Errorf("the owner: %s: got %v, want a refusal", statement, err)
		}
		_, _ = owner.ExecContext(ctx, "ROLLBACK; SET session_replication_role = DEFAULT")
	}
	if _, err := broker.ExecContext(ctx, "UPDATE records SET openings = NULL WHERE id IN (?, ?)", 1, 7); err != nil {
		t.Error(err)
	}
	var leaves, texts int
	if err := broker.QueryRowContext(ctx, "SELECT count(leaf), count(openings) FROM records").Scan(&leaves, &texts); err != nil || leaves != 2 || texts != 1 {
		t.Errorf("after erasing a text: %d records, %d texts, %v", leaves, texts, err)
	}
}

func TestNewTablesAreGrantedToTheBrokersRole(t *testing.T) {
	u := emptyPostgres(t, "")
	owner := connectPostgres(t, u)
	role := createRole(t, owner, u, "")
	if _, err := migratePostgres(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	if err := grantTo(t.Context(), owner, role.user); err != nil {
		t.Fatal(err)
	}
	defer func(list []string) { migrations = list }(migrations)
	migrations = append(migrations[:len(migrations):len(migrations)], "CREATE TABLE later (id INTEGER PRIMARY KEY)")
	broker := connectPostgres(t, role)
	if _, err := preparePostgres(t.Context(), broker, true, quiet); !errors.Is(err, ErrNoSchema) {
		t.Errorf("an older schema: %v", err)
	}
	if _, err := preparePostgres(t.Context(), owner, true, quiet); err != nil {
		t.Fatal(err)
	}
	if _, err := preparePostgres(t.Context(), broker, true, quiet); err != nil {
		t.Error(err)
	}
}

func TestExcessRightsAreNamed(t *testing.T) {
	u := emptyPostgres(t, "")
	owner := connectPostgres(t, u)
	if _, err := migratePostgres(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	role := createRole(t, owner, u, "CREATEROLE CREATEDB BYPASSRLS REPLICATION")
	quoted := pgx.Identifier{role.user}.Sanitize()
	for _, step := range []struct{ statement, says string }{
		{"GRANT UPDATE, TRUNCATE ON records TO " + quoted, "it has UPDATE on records, it has TRUNCATE on records"},
		{"GRANT CREATE ON SCHEMA public TO " + quoted, "it may create objects in the schema"},
		{fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", u.database, quoted), "it may create schemas in the database"},
		{"SELECT 1", "(CREATEROLE), it may create databases (CREATEDB), it may replicate (REPLICATION), it bypasses row security (BYPASSRLS)"},
		{"ALTER TABLE records OWNER TO " + quoted, "it owns the tables"},
		{"ALTER ROLE " + quoted + " SUPERUSER", "it is a superuser"},
	} {
		if _, err := owner.ExecContext(t.Context(), step.statement); err != nil {
			t.Fatal(err)
		}
		r, err := readRole(t.Context(), connectPostgres(t, role))
		if err != nil || !strings.Contains(r.warning(), step.says) {
			t.Errorf("after %s: got %s, %v", step.statement, r.warning(), err)
		}
	}
	if _, err := owner.ExecContext(t.Context(), "ALTER TABLE records OWNER TO CURRENT_USER"); err != nil {
		t.Fatal(err)
	}
}
