// Package tables gives tests above the store a database with the store's tables (package
// storetest).
package tables

import (
	"context"
	"testing"

	"accessbroker.internal/internal/storetest"
	"accessbroker.internal/store"
)

// URL returns the URL of a store: of the file, or of the database of PostgreSQL that stands
// for it until the end of the test.
func URL(t testing.TB, file string) string {
	t.Helper()
	return storetest.URL(t, file, func(url string) error {
		_, err := store.Migrate(context.Background(), url, nil)
		return err
	})
}
