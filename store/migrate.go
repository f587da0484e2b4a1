package store

import (
	"context"
	"database/sql"
	"fmt"

	"accessbroker.internal/broker"
)

// migrations take a database from one schema version to the next; there is no way
// back. A migration that was released is never changed, so tables keep the names
// that they were given: lingering indexes leases that outlive their end, and
// tellings are deliveries.
var migrations = []string{`
CREATE TABLE requests (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, lapses INTEGER) WITHOUT ROWID;
CREATE INDEX requests_pending ON requests (lapses) WHERE lapses IS NOT NULL;

CREATE TABLE leases (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, due INTEGER) WITHOUT ROWID;
CREATE INDEX leases_due ON leases (due) WHERE due IS NOT NULL;
CREATE TABLE live (id BLOB NOT NULL PRIMARY KEY, until INTEGER NOT NULL, kind INTEGER NOT NULL, request BLOB NOT NULL, holder TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kinds (id INTEGER PRIMARY KEY, entitlement TEXT NOT NULL, issuer TEXT NOT NULL, UNIQUE (entitlement, issuer));

CREATE TABLE counters (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX counters_expires ON counters (expires);
CREATE TABLE idempotency (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX idempotency_expires ON idempotency (expires);
CREATE TABLE asks (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX asks_expires ON asks (expires);

CREATE TABLE blocks (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE signing_keys (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, purpose TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE logs (epoch INTEGER PRIMARY KEY, origin TEXT NOT NULL UNIQUE, public TEXT NOT NULL);
CREATE TABLE records (id INTEGER PRIMARY KEY, leaf BLOB NOT NULL, hashes BLOB NOT NULL, openings BLOB);
CREATE TABLE checkpoints (id INTEGER PRIMARY KEY, note TEXT NOT NULL);
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, size INTEGER NOT NULL,
	root BLOB NOT NULL, time INTEGER NOT NULL, blocks INTEGER NOT NULL, nonce BLOB NOT NULL);
INSERT INTO head VALUES (1, 0, 0, x'', 0, 0, x'00');
`, `
CREATE TABLE notices (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, due INTEGER) WITHOUT ROWID;
CREATE INDEX notices_due ON notices (due) WHERE due IS NOT NULL;
CREATE TABLE reviews (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX sessions_expires ON sessions (expires);
CREATE TABLE logouts (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX logouts_expires ON logouts (expires);
CREATE TABLE logins (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX logins_expires ON logins (expires);
CREATE TABLE people (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
`, `
CREATE TABLE tellings (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX tellings_expires ON tellings (expires);
`, `
CREATE TABLE lingering (id BLOB NOT NULL PRIMARY KEY, until INTEGER NOT NULL, kind INTEGER NOT NULL, request BLOB NOT NULL, holder TEXT NOT NULL) WITHOUT ROWID;
`, `
ALTER TABLE notices ADD COLUMN channel TEXT;
ALTER TABLE notices ADD COLUMN urgent INTEGER;
ALTER TABLE notices ADD COLUMN requester TEXT;
DROP INDEX notices_due;
CREATE INDEX notices_channel ON notices (channel, urgent, due) WHERE due IS NOT NULL;
CREATE INDEX notices_requester ON notices (channel, requester) WHERE due IS NOT NULL AND requester IS NOT NULL;
CREATE INDEX notices_told ON notices (id) WHERE due IS NULL;
`, `
CREATE TABLE revision (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
`, `
CREATE TABLE collected (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
`, `
CREATE TABLE counted (one INTEGER PRIMARY KEY CHECK (one = 1), record INTEGER NOT NULL);
INSERT INTO counted VALUES (1, 0);
CREATE TABLE hours (hour INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE events (kind TEXT NOT NULL, record INTEGER NOT NULL, PRIMARY KEY (kind, record)) WITHOUT ROWID;
`, `
ALTER TABLE requests ADD COLUMN person TEXT;
CREATE INDEX requests_person ON requests (person) WHERE person IS NOT NULL;
`, migration10, migration11, migration12, migration13}

// migration10 adds the tables of facts and of what is built on them, each next to the code
// that uses it.
const migration10 = standingTables + directoryTables + inventoryTables + tallyTables + signalTables + supplierTables + membershipTables + campaignTables

// migration11 adds the tables of delegation and of waiting in the standard ways, each next to
// the code that uses it.
const migration11 = spentTables + statusListTables

// migration12 adds what requests carry and what was used, each next to the code that uses it.
const migration12 = carriedTables + usedTables

// migration13 adds what retention and several processes need, each next to the code that uses
// it.
const migration13 = retentionTables + recoveryTables

// fills are the parts of a migration that SQL cannot do, by version.
var fills = map[int]func(context.Context, *sql.Tx) error{5: fillNotices, 9: fillPeople}

// fillNotices fills the columns by which notices are found since version 5.
func fillNotices(ctx context.Context, tx *sql.Tx) error {
	list := map[broker.NoticeID]broker.Notice{}
	err := each(ctx, tx, "SELECT id, body FROM notices WHERE due IS NOT NULL", nil, func(rows *sql.Rows) error {
		var id, body []byte
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		key, err := notices.key(id)
		if err != nil {
			return err
		}
		var n broker.Notice
		err = decodeBody(body, &n)
		list[key.(broker.NoticeID)] = n
		return err
	})
	if err != nil {
		return err
	}
	for id, n := range list {
		args := append(noticeColumns(&n), id[:])
		if _, err := tx.ExecContext(ctx, "UPDATE notices SET due = ?, channel = ?, urgent = ?, requester = ? WHERE id = ?", args...); err != nil {
			return err
		}
	}
	return nil
}

// fillPeople fills the column by which the requests of people are found since version 9.
func fillPeople(ctx context.Context, tx *sql.Tx) error {
	people := map[broker.RequestID]any{}
	err := each(ctx, tx, "SELECT id, body FROM requests", nil, func(rows *sql.Rows) error {
		var id, body sql.RawBytes
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		key, err := requests.key(id)
		if err != nil {
			return err
		}
		row, err := decodeRow(key, body)
		if err != nil {
			return err
		}
		if person := personOf(row.(*broker.Request).Requester.ID); person != nil {
			people[key.(broker.RequestID)] = person
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id, person := range people {
		if _, err := tx.ExecContext(ctx, "UPDATE requests SET person = ? WHERE id = ?", person, id[:]); err != nil {
			return err
		}
	}
	return nil
}

// migrate brings the schema up to date, with one transaction per version.
func migrate(ctx context.Context, conn *sql.Conn) error {
	have, err := schemaVersion(ctx, conn)
	if err != nil {
		return err
	}
	for ; have < len(migrations); have++ {
		if err := migrateTo(ctx, conn, have+1); err != nil {
			return fmt.Errorf("migrating the database from schema version %d to %d: %w", have, have+1, err)
		}
	}
	return forgetOtherTraits(ctx, conn)
}

// schemaVersion returns the schema version of a database, and an error for
// versions that are newer than this program.
func schemaVersion(ctx context.Context, conn *sql.Conn) (int, error) {
	var have int
	if err := conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return 0, fmt.Errorf("reading the schema version: %w", err)
	}
	if have > len(migrations) {
		return 0, fmt.Errorf("the database has schema version %d, and this program knows versions up to %d: run the newer program that wrote it", have, len(migrations))
	}
	return have, nil
}

func migrateTo(ctx context.Context, conn *sql.Conn, version int) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // no effect after Commit
	if _, err := tx.ExecContext(ctx, migrations[version-1]); err != nil {
		return err
	}
	if fill := fills[version]; fill != nil {
		if err := fill(ctx, tx); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version)); err != nil {
		return err
	}
	return tx.Commit()
}
