package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
)

// postgresTables are the tables and columns that only PostgreSQL has, each next to the code
// that uses it.
var postgresTables = []string{feedTables, writerTables, schemaTables, ruleFileTables, dutyTables, replicaTables}

// createPostgres creates the tables of the newest schema version in an empty database. The
// migrations of SQLite say what they are; the driver translates them. Those of the versions
// before PostgreSQL run on empty tables only.
func createPostgres(ctx context.Context, tx *sql.Tx) error {
	for i, statements := range append(slices.Clone(migrations), postgresTables...) {
		if _, err := tx.ExecContext(ctx, statements); err != nil {
			return fmt.Errorf("creating the tables, in part %d: %w", i+1, err)
		}
	}
	return nil
}
