package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// oldestServer is the oldest version of PostgreSQL that works: 14.
const oldestServer = 140000

// A postgresServer is what a server states about itself.
type postgresServer struct {
	number   int64  // of its version: 150018 is 15.18
	version  string // as text
	encoding string // of the database
	standby  bool   // it follows another server
	readOnly bool   // transactions cannot write
	database string
	user     string
	clock    time.Duration // this process's clock minus the server's
}

// readServer returns what the server states, and an error for one that cannot be used.
func readServer(ctx context.Context, db queryer) (*postgresServer, error) {
	s := &postgresServer{}
	var micros int64
	const query = `SELECT CAST(current_setting('server_version_num') AS bigint), current_setting('server_version'), CAST(pg_encoding_to_char(encoding) AS text), pg_is_in_recovery(),
		current_setting('transaction_read_only') = 'on' AND current_setting('default_transaction_read_only') = 'on', CAST(current_database() AS text), CAST(current_user AS text),
		CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)
		FROM pg_catalog.pg_database WHERE datname = current_database()`
	began := time.Now()
	err := db.QueryRowContext(ctx, query).Scan(&s.number, &s.version, &s.encoding, &s.standby, &s.readOnly, &s.database, &s.user, &micros)
	if err != nil {
		return nil, fmt.Errorf("asking the server for its version: %w", reaching(err))
	}
	s.clock = began.Add(time.Since(began) / 2).Sub(time.UnixMicro(micros))
	return s, s.check()
}

func (s *postgresServer) check() error {
	switch {
	case s.number < oldestServer:
		return fmt.Errorf("the server is PostgreSQL %s, and the broker needs version 14 or newer: upgrade the server", s.version)
	case s.encoding != "UTF8":
		return fmt.Errorf("the database %q has the encoding %s, and the broker needs UTF8: create it with ENCODING 'UTF8' TEMPLATE template0", s.database, s.encoding)
	}
	return nil
}

// writable returns an error if the server cannot write.
func (s *postgresServer) writable() error {
	switch {
	case s.standby:
		return errors.New("the server is a standby, which is read-only: name the primary, or all servers with target_session_attrs=read-write")
	case s.readOnly:
		return fmt.Errorf("the database %q is read-only (default_transaction_read_only is on): set it to off", s.database)
	}
	return nil
}

// preparePostgres checks the server, the schema and the role before a store opens. It
// creates or migrates the schema if the role may do so, and reports whether it created it.
func preparePostgres(ctx context.Context, db *sql.DB, existing bool, log *slog.Logger) (created bool, err error) {
	server, err := readServer(ctx, db)
	if err != nil {
		return false, err
	}
	if err := server.writable(); err != nil {
		return false, err
	}
	schema, err := readSchema(ctx, db)
	if err != nil {
		return false, err
	}
	err = schema.check()
	if errors.Is(err, ErrNoSchema) {
		if existing && schema.version == 0 {
			return false, errors.New("there is no database of a broker: it is empty")
		}
		if created, err = migrateIfAllowed(ctx, db, schema, server, err); err == nil {
			log.InfoContext(ctx, "migrated the database", "from", schema.version, "to", len(migrations))
		}
	}
	if err != nil {
		return created, err
	}
	if err := checkGuards(ctx, db); err != nil {
		return created, err
	}
	role, err := readRole(ctx, db)
	if err != nil {
		return created, err
	}
	warnings, err := durability(ctx, db)
	if text := role.warning(); text != "" {
		warnings = append(warnings, text)
	}
	for _, text := range warnings {
		log.WarnContext(ctx, text)
	}
	return created, errors.Join(err, role.check())
}

// migrateIfAllowed migrates with a role that may do so. For any other, it returns why a
// migration is needed and the command for it.
func migrateIfAllowed(ctx context.Context, db *sql.DB, schema *postgresSchema, server *postgresServer, why error) (created bool, err error) {
	may, err := schema.mayMigrate(ctx, db)
	if err != nil {
		return false, err
	}
	if !may {
		return false, migrateFirst(why, server.user)
	}
	return migratePostgres(ctx, db)
}

// migrateFirst is the error of a role that may not migrate.
func migrateFirst(why error, role string) error {
	return fmt.Errorf("%w, and the role %q may not change it: run as the owner of the tables %s", why, role, migrateCommand(role))
}

// migrateCommand is the command with which the owner of the tables lets a role use them.
func migrateCommand(role string) string {
	return fmt.Sprintf("\"broker store migrate --store URL --grant '%s'\"", strings.ReplaceAll(role, "'", `'\''`))
}

// mayMigrate reports whether the role may create the tables, or owns them.
func (s *postgresSchema) mayMigrate(ctx context.Context, db queryer) (may bool, err error) {
	query := "SELECT has_schema_privilege(current_schema(), 'CREATE')"
	if s.version > 0 {
		query = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = 'records'::regclass"
	}
	if err := db.QueryRowContext(ctx, query).Scan(&may); err != nil {
		return false, fmt.Errorf("reading the rights of the role: %w", err)
	}
	return may, nil
}
