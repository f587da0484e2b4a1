package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Report describes a database of PostgreSQL for "broker check".
type Report struct {
	URL         string   `json:"url"` // without its password
	Version     string   `json:"version"`
	Role        string   `json:"role"`
	Schema      int      `json:"schema"` // its version; 0: the first start creates it
	TLS         string   `json:"tls"`    // sslmode, or "socket"
	Pooler      bool     `json:"pooler"` // there is one between
	ClockOffset string   `json:"clock_offset"`
	Connections int64    `json:"connections"` // that the server accepts and has free
	Warnings    []string `json:"-"`
}

// maxOffset is the difference of clocks from which on a replica issues nothing.
const maxOffset = 2 * time.Second

// connectionsOfReplica is how many connections one replica may open.
const connectionsOfReplica = maxReaders + 4

// Examine reports whether a broker can use a database of PostgreSQL, and what is weak about
// it. It changes nothing. The context bounds it.
func Examine(ctx context.Context, url string) (_ *Report, err error) {
	u, err := parsePostgresURL(url)
	if err != nil {
		return nil, err
	}
	db := openPostgres(postgresConfig{settings: func() (*pgx.ConnConfig, error) { return parsePostgres(url) }})
	defer func() { err = errors.Join(err, db.Close()) }()
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, reaching(err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	r := &Report{URL: u.String(), TLS: u.sslmode()}
	if u.local() {
		r.TLS = "socket"
	}
	// A pooler invents the process ID that it states.
	if err := conn.Raw(func(c any) error { r.Pooler = !c.(*postgresConn).Direct(); return nil }); err != nil {
		return nil, err
	}
	if err := r.readServer(ctx, conn); err != nil {
		return nil, err
	}
	if err := r.readDurability(ctx, conn); err != nil {
		return nil, err
	}
	if err := r.readConnections(ctx, conn); err != nil {
		return nil, err
	}
	return r, r.readSchema(ctx, conn)
}

// reaching adds to an error of a connection what it means for an operator.
func reaching(err error) error {
	if words := cause(err); words != "" {
		return fmt.Errorf("%s: %w", words, err)
	}
	return err
}

func (r *Report) warn(format string, args ...any) {
	r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
}

func (r *Report) readServer(ctx context.Context, conn *sql.Conn) error {
	server, err := readServer(ctx, conn)
	if err != nil {
		return err
	}
	r.Version, r.Role = server.version, server.user
	r.ClockOffset = server.clock.Round(time.Millisecond).String()
	if server.clock.Abs() >= maxOffset {
		r.warn("the clock of this machine is %s off the database's: a broker whose clock is %s off issues nothing; synchronize both clocks", server.clock.Round(time.Millisecond), maxOffset)
	}
	return server.writable()
}

// readDurability warns of settings with which a crash can lose what was acknowledged.
func (r *Report) readDurability(ctx context.Context, conn *sql.Conn) error {
	warnings, err := durability(ctx, conn)
	r.Warnings = append(r.Warnings, warnings...)
	return err
}

// durability returns which settings let a crash lose commits that were acknowledged.
func durability(ctx context.Context, db queryer) (warnings []string, err error) {
	var sync, commit, pages string
	const query = "SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes')"
	if err := db.QueryRowContext(ctx, query).Scan(&sync, &commit, &pages); err != nil {
		return nil, fmt.Errorf("reading the server's settings: %w", err)
	}
	if sync == "off" {
		warnings = append(warnings, "the server runs with fsync=off: a crash can damage the database and lose issuances and revocations; set fsync=on")
	}
	if commit == "off" {
		warnings = append(warnings, "synchronous_commit is off: a crash of the server loses issuances and revocations that callers were told of; set it to on for the broker's role")
	}
	if pages == "off" {
		warnings = append(warnings, "the server runs with full_page_writes=off: a crash can damage the database; set full_page_writes=on")
	}
	return warnings, nil
}

// readConnections warns if a replica may not get its connections.
func (r *Report) readConnections(ctx context.Context, conn *sql.Conn) error {
	var most, reserved, used int64
	var ofRole, ofDatabase int64
	const query = `SELECT CAST(current_setting('max_connections') AS bigint), CAST(current_setting('superuser_reserved_connections') AS bigint),
		CAST((SELECT sum(numbackends) FROM pg_catalog.pg_stat_database) AS bigint),
		CAST((SELECT rolconnlimit FROM pg_catalog.pg_roles WHERE rolname = current_user) AS bigint),
		CAST((SELECT datconnlimit FROM pg_catalog.pg_database WHERE datname = current_database()) AS bigint)`
	if err := conn.QueryRowContext(ctx, query).Scan(&most, &reserved, &used, &ofRole, &ofDatabase); err != nil {
		return fmt.Errorf("reading the server's connections: %w", err)
	}
	r.Connections = max(0, most-reserved-used)
	if r.Pooler {
		return nil // it queues
	}
	switch {
	case r.Connections < connectionsOfReplica:
		r.warn("the server has %d of %d connections free, and a replica opens up to %d: raise max_connections, or put PgBouncer between", r.Connections, most, connectionsOfReplica)
	case ofRole >= 0 && ofRole < connectionsOfReplica:
		r.warn("the role %q may open %d connections, and a replica opens up to %d: raise its CONNECTION LIMIT", r.Role, ofRole, connectionsOfReplica)
	case ofDatabase >= 0 && ofDatabase < connectionsOfReplica:
		r.warn("the database accepts %d connections, and a replica opens up to %d: raise its CONNECTION LIMIT", ofDatabase, connectionsOfReplica)
	}
	return nil
}

// readSchema checks the tables and the rights of the role.
func (r *Report) readSchema(ctx context.Context, conn *sql.Conn) error {
	schema, err := readSchema(ctx, conn)
	if err != nil {
		return err
	}
	r.Schema = schema.version
	if err := schema.check(); errors.Is(err, ErrNoSchema) {
		may, mayErr := schema.mayMigrate(ctx, conn)
		if mayErr != nil || !may {
			return errors.Join(mayErr, migrateFirst(err, r.Role))
		}
		r.warn("the next start migrates the database to schema version %d (%v), because the role %q may do so: let another role own the tables, and run \"broker store migrate --grant\" as that role", len(migrations), err, r.Role)
		return nil
	} else if err != nil {
		return err
	}
	if err := checkGuards(ctx, conn); err != nil {
		return err
	}
	role, err := readRole(ctx, conn)
	if err != nil {
		return err
	}
	if text := role.warning(); text != "" {
		r.warn("%s", text)
	}
	return role.check()
}

// String describes the database in one line.
func (r *Report) String() string {
	schema := "no schema yet"
	if r.Schema > 0 {
		schema = "schema " + strconv.Itoa(r.Schema)
	}
	through := ""
	if r.Pooler {
		through = " through a connection pooler"
	}
	return fmt.Sprintf("PostgreSQL %s%s, role %s, %s, TLS %s, clock %s off, %d connections free", r.Version, through, r.Role, schema, r.TLS, r.ClockOffset, r.Connections)
}
