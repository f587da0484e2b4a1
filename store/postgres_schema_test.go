package store

import (
	"testing"
)

func TestPostgresHasTheTablesOfSQLite(t *testing.T) {
	db := postgresPool(t, nil)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(t.Context(), "CREATE SCHEMA empty; SET LOCAL search_path = empty"); err != nil {
		t.Fatal(err)
	}
	if err := createPostgres(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
}
