package store

import (
	"context"
	"database/sql"
)

// An engine is the database below a Store: a file of SQLite, which this process alone uses
// (sqlite.go), or PostgreSQL, which several processes share (postgres.go). It holds what
// differs between the two when a group is written. Only the leader of the queue uses it.
type engine interface {
	// connect opens the connection that writes.
	connect(ctx context.Context) (*sql.DB, *sql.Conn, error)

	// begin begins the transaction of a group. Until it ends, no other process runs a
	// group, and the writer's memory is what the last commit of any process left.
	begin(ctx context.Context, s *Store) error

	// fetch calls f for the rows with the wanted ids, by table. lease is the lease that a
	// request carries.
	fetch(ctx context.Context, w *writer, wanted *[tableCount][]any, f func(t table, id, body, lease []byte) error) error

	// exec executes a statement, and returns the number of rows that it changed. While a
	// group is flushed, an engine may send the statement later, with commit: the arguments
	// must stay as they are.
	exec(ctx context.Context, w *writer, query string, args []any) (int64, error)

	// flush begins to write a group: statements until commit need no answer of their own.
	flush()

	// finish writes what a group needs besides the head, its rows and its records.
	finish(ctx context.Context, g *group) error

	// commit ends the transaction. An error may be that of a statement since flush.
	commit(ctx context.Context, w *writer) error

	// committed reports whether the transaction with a nonce was committed, after a commit
	// that returned an error. It returns an error only if that can never be found out.
	committed(ctx context.Context, w *writer, nonce []byte) (bool, error)

	// reload makes the writer usable again when its memory or its connection may not be.
	reload(ctx context.Context, w *writer) error

	// closeStatements closes what belongs to the connection.
	closeStatements(w *writer) error
}
