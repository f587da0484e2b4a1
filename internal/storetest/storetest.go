// Package storetest gives tests a database: SQLite in a file of the test, or PostgreSQL if the
// environment names a server. So each test of the store, of the broker and of the service
// runs on both.
package storetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Env is the environment variable with the URL of a PostgreSQL server for tests, as a
// superuser. Each test gets databases of its own there.
const Env = "STORE_TEST_POSTGRES"

// Postgres reports whether the tests run on PostgreSQL.
func Postgres() bool { return os.Getenv(Env) != "" }

// OnlySQLite skips a test whose subject PostgreSQL does not have.
func OnlySQLite(t testing.TB, reason string) {
	t.Helper()
	if Postgres() {
		t.Skip("only on SQLite: " + reason)
	}
}

// OnlyPostgres skips a test whose subject SQLite does not have, and returns the URL of the
// server.
func OnlyPostgres(t testing.TB) string {
	t.Helper()
	if !Postgres() {
		t.Skip("only on PostgreSQL: set " + Env + " to the URL of a server's superuser")
	}
	return os.Getenv(Env)
}

// limit bounds each call of the server.
const limit = time.Minute

// URL returns the URL of a store: of the file, or of a database of PostgreSQL that stands for
// the file. Calls with the same file return the same database until the end of the test that
// called first. create creates the tables in an empty database: it opens a store and closes
// it. It is called once in a process, for the database of which all others are copies.
func URL(t testing.TB, file string, create func(url string) error) string {
	t.Helper()
	if !Postgres() {
		return "sqlite:" + file
	}
	known.Lock()
	defer known.Unlock()
	if u, ok := known.urls[file]; ok {
		return u
	}
	if known.template == "" {
		name, err := newTemplate(create)
		if err != nil {
			t.Fatalf("creating the database that tests copy: %v", err)
		}
		known.template = name
	}
	u, drop, err := newDatabase(known.template)
	if err != nil {
		t.Fatalf("creating a database: %v", err)
	}
	known.urls[file] = u
	t.Cleanup(func() {
		known.Lock()
		defer known.Unlock()
		delete(known.urls, file)
		if err := drop(); err != nil {
			t.Errorf("dropping the database of %s: %v", file, err)
		}
	})
	return u
}

// Empty returns the URL of an empty database of PostgreSQL, which ends with the test.
func Empty(t testing.TB) string {
	t.Helper()
	OnlyPostgres(t)
	u, drop, err := newDatabase("template0")
	if err != nil {
		t.Fatalf("creating a database: %v", err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Errorf("dropping a database: %v", err)
		}
	})
	return u
}

var known = struct {
	sync.Mutex
	template string
	urls     map[string]string // by file
}{urls: map[string]string{}}

func newTemplate(create func(url string) error) (name string, err error) {
	u, _, err := newDatabase("template0")
	if err != nil {
		return "", err
	}
	if err := create(u); err != nil {
		return "", err
	}
	parsed, err := url.Parse(u)
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(parsed.Path, "/"), nil
}

// newDatabase creates a copy of a database.
func newDatabase(template string) (u string, drop func() error, err error) {
	parsed, err := url.Parse(os.Getenv(Env))
	if err != nil {
		return "", nil, errors.New(Env + " is not a URL")
	}
	name := "test_" + strings.ToLower(rand.Text())
	// The last connection of a template may still be closing.
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		err = run(fmt.Sprintf(`CREATE DATABASE %q TEMPLATE %q ENCODING 'UTF8'`, name, template))
		if inUse := (*pgconn.PgError)(nil); !errors.As(err, &inUse) || inUse.Code != "55006" || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return "", nil, err
	}
	parsed.Path = "/" + name
	return parsed.String(), func() error { return run(fmt.Sprintf("DROP DATABASE %q WITH (FORCE)", name)) }, nil
}

// run runs a statement on the server.
func run(statement string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := pgx.Connect(ctx, os.Getenv(Env))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, statement)
	return err
}
