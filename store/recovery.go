package store

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"time"

	"accessbroker.internal/broker"
)

// recoveryTables are the tables of recoveries after a restore: what is done, and the
// credentials without leases.
const recoveryTables = `
CREATE TABLE recoveries (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE orphans (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, due INTEGER) WITHOUT ROWID;
CREATE INDEX orphans_due ON orphans (due) WHERE due IS NOT NULL;
`

func recoveryFields(r broker.Row, c *coder) bool {
	switch r := r.(type) {
	case *broker.Recovery:
		c.fields(&r.Since, &r.Opened, &r.Sessions, &r.Searched, &r.Trouble, &r.Found, &r.Ended, &r.Finished)
	case *broker.Orphan:
		outcome := string(r.Outcome)
		c.fields(&r.Lease, &r.Holder, &r.Entitlement, &r.Text, &r.Handle, &r.Expires, &outcome, &r.Code, &r.Attempts, &r.Due, &r.Found, &r.Ended)
		r.Outcome = broker.OrphanOutcome(outcome)
	default:
		return false
	}
	return true
}

func recoveryID(k broker.RecoveryKey) []byte { return joined(strconv.FormatInt(int64(k), 10)) }

func recoveryKey(t table, parts []string) (broker.Key, error) {
	switch {
	case t == orphans && len(parts) == 2:
		return broker.OrphanKey{Issuer: parts[0], Target: parts[1]}, nil
	case t == recoveries && len(parts) == 1:
		if epoch, err := strconv.ParseInt(parts[0], 10, 64); err == nil {
			return broker.RecoveryKey(epoch), nil
		}
	}
	return nil, fmt.Errorf("an id of %s has %d parts", tables[t].name, len(parts))
}

// Recoveries reads what a recovery needs.
type Recoveries struct{ db queryer }

// NewRecoveries returns a reader of a store.
func NewRecoveries(s *Store) Recoveries { return Recoveries{s.readers} }

// Recoveries returns a reader of a database that another process may be using.
func (f *Source) Recoveries() Recoveries { return Recoveries{f.db} }

// Last returns the newest recovery, or nil.
func (r Recoveries) Last(ctx context.Context) (last *broker.Recovery, err error) {
	err = r.rows(ctx, recoveries, "SELECT id, body FROM recoveries", nil, func(row broker.Row) {
		if next := row.(*broker.Recovery); last == nil || next.RecoveryKey > last.RecoveryKey {
			last = next
		}
	})
	return last, err
}

// Due returns credentials whose issuer must be called by now.
func (r Recoveries) Due(ctx context.Context, now time.Time, limit int) ([]*broker.Orphan, error) {
	return r.orphans(ctx, "SELECT id, body FROM orphans INDEXED BY orphans_due WHERE due IS NOT NULL AND due <= ? ORDER BY due LIMIT ?", now.UnixMilli(), limit)
}

// Orphans returns a page of all credentials, after the ID of another one.
func (r Recoveries) Orphans(ctx context.Context, after *broker.Orphan, limit int) ([]*broker.Orphan, error) {
	from := []byte{}
	if after != nil {
		from = joined(after.Issuer, after.Target)
	}
	return r.orphans(ctx, "SELECT id, body FROM orphans WHERE id > ? ORDER BY id LIMIT ?", from, limit)
}

func (r Recoveries) orphans(ctx context.Context, query string, args ...any) (list []*broker.Orphan, err error) {
	err = r.rows(ctx, orphans, query, args, func(row broker.Row) { list = append(list, row.(*broker.Orphan)) })
	return list, err
}

func (r Recoveries) rows(ctx context.Context, t table, query string, args []any, f func(broker.Row)) error {
	err := each(ctx, r.db, query, args, func(rows *sql.Rows) error {
		var id, body sql.RawBytes
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		key, err := t.key(id)
		if err != nil {
			return err
		}
		row, err := decodeRow(key, body)
		if err == nil {
			f(row)
		}
		return err
	})
	if err != nil {
		return unavailable(fmt.Sprintf("reading %s", tables[t].name), err)
	}
	return nil
}

// Lost counts what a restored database has that may be out of date.
type Lost struct {
	Sessions int `json:"sessions"`
	Pending  int `json:"pending_requests"`
	Live     int `json:"live_leases"` // set by the caller
	Blocks   int `json:"blocks"`
	Tokens   int `json:"scim_tokens"`
}

// Lost counts what may be out of date at now.
func (r Recoveries) Lost(ctx context.Context, now time.Time) (l Lost, err error) {
	for query, n := range map[string]*int{
		"SELECT count(*) FROM sessions WHERE expires > ?":    &l.Sessions,
		"SELECT count(*) FROM requests WHERE lapses > ?":     &l.Pending,
		"SELECT count(*) FROM blocks WHERE ? > 0":            &l.Blocks,
		"SELECT count(*) FROM scim_tokens WHERE expires > ?": &l.Tokens,
	} {
		if err := r.db.QueryRowContext(ctx, query, now.UnixMilli()).Scan(n); err != nil {
			return l, unavailable("counting what may be out of date", err)
		}
	}
	return l, nil
}
