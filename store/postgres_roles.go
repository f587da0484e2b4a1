package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// rights are what the broker's role may do with a table, where it is not all of reading,
// inserting, changing and deleting.
var rights = map[string][]string{
	"records":        {"SELECT", "INSERT"},
	"logs":           {"SELECT", "INSERT"},
	"rule_files":     {"SELECT", "INSERT"},
	"head":           {"SELECT", "UPDATE"},
	"schema_version": {"SELECT"},
}

func rightsOn(table string) []string {
	if list, ok := rights[table]; ok {
		return list
	}
	return []string{"SELECT", "INSERT", "UPDATE", "DELETE"}
}

// grant grants a role what the broker needs, and takes what it does not need.
func grant(ctx context.Context, tx *sql.Tx, role string) error {
	quoted := pgx.Identifier{role}.Sanitize()
	var b strings.Builder
	for _, table := range tablesUntil(len(migrations)) {
		name := pgx.Identifier{table}.Sanitize()
		fmt.Fprintf(&b, "REVOKE ALL ON %s FROM %s; GRANT %s ON %s TO %s; ", name, quoted, strings.Join(rightsOn(table), ", "), name, quoted)
	}
	fmt.Fprintf(&b, "GRANT EXECUTE ON FUNCTION erase_text(bigint) TO %s", quoted)
	if _, err := tx.ExecContext(ctx, b.String()); err != nil {
		return fmt.Errorf("granting rights to the role %q: %w", role, err)
	}
	return nil
}

// grantedRoles returns the roles that may append records, except the owner.
func grantedRoles(ctx context.Context, db queryer) (roles []string, err error) {
	const query = `SELECT CAST(r.rolname AS text) FROM pg_catalog.pg_class c, aclexplode(c.relacl) a, pg_catalog.pg_roles r
		WHERE c.oid = to_regclass('records') AND r.oid = a.grantee AND a.grantee <> c.relowner AND a.privilege_type = 'INSERT' ORDER BY 1`
	err = each(ctx, db, query, nil, func(rows *sql.Rows) error {
		var role string
		err := rows.Scan(&role)
		roles = append(roles, role)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading who may append records: %w", err)
	}
	return roles, nil
}

// A postgresRole is what the role of a connection may do.
type postgresRole struct {
	name    string
	missing []string // what the broker needs
	excess  []string // what it does not need
}

// readRole compares the rights of the role with those that the broker needs. The schema
// must be complete.
func readRole(ctx context.Context, db queryer) (*postgresRole, error) {
	r := &postgresRole{}
	if err := r.readAttributes(ctx, db); err != nil {
		return nil, fmt.Errorf("reading the rights of the role: %w", err)
	}
	const query = `SELECT t, p, COALESCE(has_table_privilege(to_regclass(quote_ident(t)), p), false)
		FROM unnest(string_to_array(?, ',')) t, unnest(string_to_array('SELECT,INSERT,UPDATE,DELETE,TRUNCATE,TRIGGER', ',')) p`
	tables := tablesUntil(len(migrations))
	err := each(ctx, db, query, []any{strings.Join(tables, ",")}, func(rows *sql.Rows) error {
		var table, right string
		var has bool
		if err := rows.Scan(&table, &right, &has); err != nil {
			return err
		}
		needed, final := slices.Contains(rightsOn(table), right), rights[table] != nil
		switch {
		case needed && !has:
			r.missing = append(r.missing, right+" on "+table)
		case !needed && has && final:
			r.excess = append(r.excess, "it has "+right+" on "+table)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the rights of the role: %w", err)
	}
	return r, r.readErasing(ctx, db)
}

// readErasing reads whether the role may erase texts.
func (r *postgresRole) readErasing(ctx context.Context, db queryer) error {
	var may bool
	if err := db.QueryRowContext(ctx, "SELECT COALESCE(has_function_privilege(to_regprocedure('erase_text(bigint)'), 'EXECUTE'), false)").Scan(&may); err != nil {
		return fmt.Errorf("reading the rights of the role: %w", err)
	}
	if !may {
		r.missing = append(r.missing, "EXECUTE on the function erase_text")
	}
	return nil
}

// readAttributes reads what the role may do beyond tables.
func (r *postgresRole) readAttributes(ctx context.Context, db queryer) error {
	var owner string
	has := make([]bool, 8)
	const query = `SELECT CAST(current_user AS text), CAST(pg_get_userbyid(c.relowner) AS text), pg_has_role(c.relowner, 'MEMBER'),
		r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication, r.rolbypassrls,
		has_schema_privilege(c.relnamespace, 'CREATE'), has_database_privilege(current_database(), 'CREATE')
		FROM pg_catalog.pg_class c, pg_catalog.pg_roles r WHERE c.oid = 'records'::regclass AND r.rolname = current_user`
	err := db.QueryRowContext(ctx, query).Scan(&r.name, &owner, &has[0], &has[1], &has[2], &has[3], &has[4], &has[5], &has[6], &has[7])
	if err != nil {
		return err
	}
	if has[1] { // a superuser has everything below
		r.excess = []string{"it is a superuser"}
		return nil
	}
	owns := "it owns the tables, so that it can remove what protects the log"
	if owner != r.name {
		owns = fmt.Sprintf("it is a member of %q, which owns the tables, so that it can remove what protects the log", owner)
	}
	for i, what := range []string{owns, "", "it may create roles (CREATEROLE)", "it may create databases (CREATEDB)", "it may replicate (REPLICATION)", "it bypasses row security (BYPASSRLS)",
		"it may create objects in the schema", "it may create schemas in the database"} {
		if has[i] && what != "" {
			r.excess = append(r.excess, what)
		}
	}
	return nil
}

// check returns an error if the role lacks a right.
func (r *postgresRole) check() error {
	if len(r.missing) == 0 {
		return nil
	}
	shown := strings.Join(r.missing[:min(len(r.missing), 5)], ", ")
	if n := len(r.missing) - 5; n > 0 {
		shown += fmt.Sprintf(" and %d more", n)
	}
	return fmt.Errorf("the role %q lacks %s: run as the owner of the tables %s", r.name, shown, migrateCommand(r.name))
}

// warning describes what the role may do beyond its needs; "" if nothing.
func (r *postgresRole) warning() string {
	if len(r.excess) == 0 {
		return ""
	}
	return fmt.Sprintf("the role %q has more rights than a broker needs: %s; let another role own the tables, and grant this one its rights with \"broker store migrate --grant\"", r.name, strings.Join(r.excess, ", "))
}

// checkGuards returns an error if what protects the log was removed or disabled.
func checkGuards(ctx context.Context, db queryer) error {
	var guards int
	const query = `SELECT count(*) FROM pg_catalog.pg_trigger WHERE NOT tgisinternal AND tgenabled = 'A' AND tgname IN ('records_final', 'records_kept', 'logs_final', 'logs_kept')
		AND tgrelid IN (to_regclass('records'), to_regclass('logs'))`
	if err := db.QueryRowContext(ctx, query).Scan(&guards); err != nil {
		return fmt.Errorf("reading the triggers that protect the log: %w", err)
	}
	if guards != 4 {
		return errors.New("a trigger that protects the records of the log was removed or disabled: restore it (records_final, records_kept, logs_final, logs_kept), find out who removed it, and verify the log")
	}
	return nil
}

// grantTo grants a role what the broker needs.
func grantTo(ctx context.Context, db *sql.DB, role string) error {
	var exists, owns bool
	const query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = ?), EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = to_regclass('records') AND pg_get_userbyid(relowner) = ?)"
	if err := db.QueryRowContext(ctx, query, role, role).Scan(&exists, &owns); err != nil {
		return fmt.Errorf("looking for the role %q: %w", role, err)
	}
	switch {
	case !exists:
		return fmt.Errorf("there is no role %q: create it first, with CREATE ROLE %s LOGIN", role, pgx.Identifier{role}.Sanitize())
	case owns:
		return fmt.Errorf("the role %q owns the tables: grant another role, so that the broker cannot remove what protects the log", role)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // no effect after Commit
	if err := grant(ctx, tx, role); err != nil {
		return err
	}
	return tx.Commit()
}
