package store

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
)

// setBack takes the schema of a database back to an earlier version: it drops the tables,
// indexes and columns that the version did not have, and creates those that it had. It does
// not change the rows.
func setBack(t *testing.T, s *Store, version int) {
	t.Helper()
	earlier, err := sql.Open(driverName, filepath.Join(t.TempDir(), "earlier.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = earlier.Close() }()
	for _, m := range migrations[:version] {
		if _, err := earlier.ExecContext(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	had := schemaParts(t, earlier)
	var steps []string
	for kind, names := range schemaParts(t, s.w.conn) {
		for name, table := range names {
			_, known := had[kind][name]
			switch {
			case known:
			case kind == "column":
				if _, known := had["table"][table]; known {
					steps = append(steps, fmt.Sprintf("ALTER TABLE %s DROP COLUMN %s", table, name[len(table)+1:]))
				}
			case kind == "index":
				steps = append([]string{"DROP INDEX " + name}, steps...) // before the columns that it has
			}
		}
	}
	for name := range schemaParts(t, s.w.conn)["table"] {
		if _, known := had["table"][name]; !known {
			steps = append(steps, "DROP TABLE "+name)
		}
	}
	for _, kind := range []string{"table", "index"} {
		for name := range had[kind] {
			if _, known := schemaParts(t, s.w.conn)[kind][name]; !known {
				var create string
				if err := earlier.QueryRowContext(t.Context(), "SELECT sql FROM sqlite_master WHERE name = ?", name).Scan(&create); err != nil {
					t.Fatal(err)
				}
				steps = append(steps, create)
			}
		}
	}
	for _, back := range append(steps, fmt.Sprintf("PRAGMA user_version = %d", version)) {
		if _, err := s.w.conn.ExecContext(t.Context(), back); err != nil {
			t.Fatalf("%s: %v", back, err)
		}
	}
}

// schemaParts returns the tables, the indexes and the columns ("table.column") of a
// database, with their tables.
func schemaParts(t *testing.T, q queryer) map[string]map[string]string {
	t.Helper()
	parts := map[string]map[string]string{"table": {}, "index": {}, "column": {}}
	err := each(context.Background(), q, `SELECT type, name, tbl_name FROM sqlite_master WHERE type IN ('table', 'index') AND name NOT LIKE 'sqlite_%'
		UNION ALL SELECT 'column', m.name || '.' || c.name, m.name FROM sqlite_master AS m CROSS JOIN pragma_table_info(m.name) AS c WHERE m.type = 'table'`, nil, func(rows *sql.Rows) error {
		var kind, name, table string
		err := rows.Scan(&kind, &name, &table)
		parts[kind][name] = table
		return err
	})
	if err != nil || len(parts["table"]) < 10 {
		t.Fatalf("reading the schema: %d tables, %v", len(parts["table"]), err)
	}
	return parts
}
