package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
)

// The statements that write call the driver without package database/sql between them:
// a group runs hundreds of them, and database/sql locks, copies and converts for
// each one.

// exec executes a statement.
func (w *writer) exec(ctx context.Context, query string, args ...any) error {
	_, err := w.execCount(ctx, query, args...)
	return err
}

// execCount executes a statement and returns the number of rows that it changed.
func (w *writer) execCount(ctx context.Context, query string, args ...any) (n int64, err error) {
	w.args = w.args[:0]
	for i, arg := range args {
		value, err := driver.DefaultParameterConverter.ConvertValue(arg)
		if err != nil {
			return 0, fmt.Errorf("binding parameter %d: %w", i+1, err)
		}
		w.args = append(w.args, driver.NamedValue{Ordinal: i + 1, Value: value})
	}
	err = w.conn.Raw(func(c any) error {
		s, err := w.statement(ctx, c, query)
		if err != nil {
			return err
		}
		result, err := s.ExecContext(ctx, w.args)
		if err != nil {
			return err
		}
		n, err = result.RowsAffected()
		return err
	})
	return n, err
}

// A statement is a prepared statement of the driver.
type statement interface {
	driver.Stmt
	driver.StmtExecContext
}

var errDriver = errors.New("the SQLite driver has no prepared statements with a context")

// statement returns a statement on the connection c. It prepares each query once.
func (w *writer) statement(ctx context.Context, c any, query string) (statement, error) {
	if s := w.writes[query]; s != nil {
		return s, nil
	}
	conn, ok := c.(driver.ConnPrepareContext)
	if !ok {
		return nil, errDriver
	}
	prepared, err := conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s, ok := prepared.(statement)
	if !ok {
		return nil, errors.Join(errDriver, prepared.Close())
	}
	w.writes[query] = s
	return s, nil
}

// closeStatements closes the statements of the connection. SQLite keeps a connection
// open, with its locks, until the last of them is closed.
func (w *writer) closeStatements() error {
	return w.conn.Raw(func(any) error {
		var errs []error
		for query, s := range w.writes {
			errs = append(errs, s.Close())
			delete(w.writes, query)
		}
		return errors.Join(errs...)
	})
}
