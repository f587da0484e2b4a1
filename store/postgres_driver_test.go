package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/internal/storetest"
)

// postgresEnv is the environment variable with the URL of a server.
const postgresEnv = storetest.Env

// postgresPool returns a pool of the driver on the tests' server.
func postgresPool(t *testing.T, change func(*postgresConfig)) *sql.DB {
	t.Helper()
	url := storetest.OnlyPostgres(t)
	cfg := postgresConfig{settings: func() (*pgx.ConnConfig, error) { return parsePostgres(url) }}
	if change != nil {
		change(&cfg)
	}
	db := openPostgres(cfg)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestPostgresDriverCarriesValues(t *testing.T) {
	db := postgresPool(t, nil)
	for _, c := range []struct {
		name string
		arg  any
		want any
	}{
		{"number", int64(-1 << 63), int64(-1 << 63)},
		{"int", 7, int64(7)},
		{"truth", true, int64(1)},
		{"falsehood", false, int64(0)},
		{"bytes", []byte{0, 1, 255}, []byte{0, 1, 255}},
		{"no bytes", []byte{}, []byte{}},
		{"text", "é'\\\"", "é'\\\""},
		{"text with a zero byte", "a\x00b", "a\uFFFDb"},
		{"text that is not UTF-8", "a\xffb", "a\uFFFDb"},
		{"duration", time.Second, int64(time.Second)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got any
			if err := db.QueryRowContext(t.Context(), "SELECT ?", c.arg).Scan(&got); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%T %v", got, got) != fmt.Sprintf("%T %v", c.want, c.want) {
				t.Errorf("got %T %v, want %T %v", got, got, c.want, c.want)
			}
		})
	}
	var null any = "x"
	if err := db.QueryRowContext(t.Context(), "SELECT x'00' WHERE ? IS NULL", nil).Scan(&null); err == nil {
		t.Log("NULL of no type is accepted")
	}
}

func TestPostgresDriverReadsOneSnapshot(t *testing.T) {
	for name, direct := range map[string]bool{"direct": true, "pooled": false} {
		t.Run(name, func(t *testing.T) {
			db, readers := postgresPool(t, nil), postgresPool(t, func(c *postgresConfig) { c.readOnly = true })
			table := "snapshot_" + name
			mustExec(t, db, "DROP TABLE IF EXISTS "+table+"; CREATE TABLE "+table+" (n INTEGER)")
			t.Cleanup(func() { mustExec(t, db, "DROP TABLE "+table) })
			conn, err := readers.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			pretend(t, conn, direct)
			tx, err := conn.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if n := scalar(t, tx, "SELECT count(*) FROM "+table); n != 0 {
					t.Errorf("got %d rows in the snapshot, want none", n)
				}
				mustExec(t, db, "INSERT INTO "+table+" VALUES (?)", 1)
			}
			if _, err := tx.ExecContext(t.Context(), "INSERT INTO "+table+" VALUES (?)", 2); sqlState(err) != "25006" {
				t.Errorf("got %v from writing, want the code 25006", err)
			}
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
			if n := scalar(t, conn, "SELECT count(*) FROM "+table); n != 2 {
				t.Errorf("got %d rows after the snapshot, want 2", n)
			}
		})
	}
}

func TestPostgresDriverSetsLimits(t *testing.T) {
	for name, direct := range map[string]bool{"direct": true, "pooled": false} {
		t.Run(name, func(t *testing.T) {
			db := postgresPool(t, func(c *postgresConfig) {
				c.readOnly, c.limits = true, postgresLimits{statement: 200 * time.Millisecond, lock: 3 * time.Second, idle: 4 * time.Second}
			})
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if !direct {
				_, err := conn.ExecContext(t.Context(), "RESET statement_timeout; RESET lock_timeout; RESET idle_in_transaction_session_timeout")
				if err != nil {
					t.Fatal(err)
				}
			}
			pretend(t, conn, direct)
			expect := func(q queryer) {
				t.Helper()
				var statement, lock, idle string
				query := "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout') WHERE ? = 1"
				if err := q.QueryRowContext(t.Context(), query, 1).Scan(&statement, &lock, &idle); err != nil {
					t.Fatal(err)
				}
				if statement != "200ms" || lock != "3s" || idle != "4s" {
					t.Errorf("got the limits %s, %s, %s; want 200ms, 3s, 4s", statement, lock, idle)
				}
			}
			expect(conn)
			tx, err := conn.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			expect(tx)
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.ExecContext(t.Context(), "SELECT pg_sleep(?)", "60"); sqlState(err) == "" {
				t.Errorf("got %v, want an error of the server", err)
			}
			if n := scalar(t, conn, "SELECT count(*) FROM pg_sleep(60)"); n != -1 {
				t.Errorf("a statement outlasted its limit")
			}
			expect(conn) // the connection still works
		})
	}
}

func TestPostgresDriverCancelsAtTheEndOfAContext(t *testing.T) {
	db := postgresPool(t, func(c *postgresConfig) { c.readOnly = true })
	db.SetMaxOpenConns(1)
	pid := scalar(t, db, "SELECT pg_backend_pid()")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := db.ExecContext(ctx, "SELECT pg_sleep(3600)")
		done <- err
	}()
	other := postgresPool(t, nil)
	eventually(t, func() bool {
		return scalar(t, other, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(3600)%' AND state = 'active' AND pid = ?", pid) == 1
	})
	cancel()
	if err := <-done; err == nil {
		t.Error("got no error from a query whose context ended")
	}
	eventually(t, func() bool {
		return scalar(t, other, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid = ?", pid) == 0
	})
	if again := scalar(t, db, "SELECT pg_backend_pid()"); again != pid {
		t.Errorf("got another connection after a cancel request, of process %d, want %d", again, pid)
	}
}

func TestPostgresDriverReplacesALostConnection(t *testing.T) {
	db, other := postgresPool(t, func(c *postgresConfig) { c.readOnly = true }), postgresPool(t, nil)
	db.SetMaxOpenConns(1)
	for range 3 {
		pid := scalar(t, db, "SELECT pg_backend_pid()")
		if n := scalar(t, other, "SELECT count(*) FROM (SELECT pg_terminate_backend(?::int4, 30000)) AS x", pid); n != 1 {
			t.Fatalf("got %d rows, want 1", n)
		}
		if again := scalar(t, db, "SELECT pg_backend_pid()"); again == pid || again < 0 {
			t.Errorf("got the process %d after the connection of %d was lost", again, pid)
		}
	}
}

func TestPostgresDriverNamesNoStatementsThroughAPooler(t *testing.T) {
	for name, direct := range map[string]bool{"direct": true, "pooled": false} {
		t.Run(name, func(t *testing.T) {
			db := postgresPool(t, func(c *postgresConfig) { c.readOnly = true })
			conn, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			pretend(t, conn, direct)
			for n := range 3 {
				if got := scalar(t, conn, "SELECT 0 + ?", n); got != int64(n) {
					t.Errorf("got %d, want %d", got, n)
				}
			}
			pretend(t, conn, false)
			if n := scalar(t, conn, "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT 0 +%'"); (n == 1) != direct {
				t.Errorf("the session has %d prepared statements", n)
			}
		})
	}
}

// pretend makes the driver treat a connection as direct or as one through a pooler.
func pretend(t *testing.T, conn *sql.Conn, direct bool) {
	t.Helper()
	err := conn.Raw(func(c any) error {
		p := c.(*postgresConn)
		if direct && !p.direct {
			return errors.New("the driver did not notice that the connection is direct")
		}
		p.direct = direct
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func mustExec(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(context.WithoutCancel(t.Context()), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// scalar returns the number in the only row of a query; -1 if a limit ended it.
func scalar(t *testing.T, q queryer, query string, args ...any) (n int64) {
	t.Helper()
	err := q.QueryRowContext(t.Context(), query, args...).Scan(&n)
	switch {
	case sqlState(err) == queryCanceled:
		return -1
	case err != nil:
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// eventually waits until a condition holds.
func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("timed out")
		}
	}
}
