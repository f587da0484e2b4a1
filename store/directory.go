package store

import (
	"context"
	"database/sql"

	"accessbroker.internal/broker"
)

// directoryTables are the tables of the directory. expires is set in rows that are to be
// swept.
const directoryTables = `
CREATE TABLE directory_users (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER) WITHOUT ROWID;
CREATE INDEX directory_users_expires ON directory_users (expires) WHERE expires IS NOT NULL;
CREATE TABLE directory_groups (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER) WITHOUT ROWID;
CREATE INDEX directory_groups_expires ON directory_groups (expires) WHERE expires IS NOT NULL;
CREATE TABLE directory_members (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER) WITHOUT ROWID;
CREATE INDEX directory_members_expires ON directory_members (expires) WHERE expires IS NOT NULL;
CREATE TABLE scim_tokens (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX scim_tokens_expires ON scim_tokens (expires);
`

// DirectoryRows returns a function that calls f for every row of the directory and of the
// clients' tokens: users and groups before members.
func DirectoryRows(s *Store) func(ctx context.Context, f func(broker.Row) error) error {
	return func(ctx context.Context, f func(broker.Row) error) error {
		tx, err := s.readers.BeginTx(ctx, nil)
		if err != nil {
			return unavailable("reading the directory", err)
		}
		defer func() { _ = tx.Rollback() }() // it wrote nothing
		for _, t := range []table{directoryUsers, directoryGroups, directoryMembers, scimTokens} {
			if err := eachRow(ctx, tx, t, f); err != nil {
				return unavailable("reading "+tables[t].name, err)
			}
		}
		return nil
	}
}

// eachRow calls f for every row of a table, by id.
func eachRow(ctx context.Context, tx *sql.Tx, t table, f func(broker.Row) error) error {
	return each(ctx, tx, "SELECT id, body FROM "+tables[t].name+" ORDER BY id", nil, func(rows *sql.Rows) error {
		var id, body sql.RawBytes
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		key, err := t.key(id)
		if err != nil {
			return err
		}
		row, err := decodeRow(key, body)
		if err != nil {
			return err
		}
		return f(row)
	})
}

// directoryColumns returns when a row of the directory is swept.
func directoryColumns(r broker.Row) []any {
	switch r := r.(type) {
	case *broker.DirectoryUser:
		if !r.Deleted.IsZero() {
			return []any{ceilMillis(r.Deleted)}
		}
	case *broker.DirectoryGroup:
		if !r.Deleted.IsZero() {
			return []any{ceilMillis(r.Deleted)}
		}
	case *broker.DirectoryMember:
		if !r.Left.IsZero() {
			return []any{ceilMillis(r.Left.Add(broker.MemberLeftFor))}
		}
	case *broker.SCIMToken:
		return []any{ceilMillis(r.Expires)}
	}
	return noValue
}

// directoryFields encodes or decodes a row of the directory. It returns false for any
// other row.
func directoryFields(r broker.Row, c *coder) bool {
	switch r := r.(type) {
	case *broker.DirectoryUser:
		c.fields(&r.Source, &r.Person, &r.UserName, &r.ExternalID, &r.Manager, &r.Active, &r.Document, &r.Version, &r.Created, &r.Modified, &r.Deleted, &r.Ends, &r.Sponsor)
	case *broker.DirectoryGroup:
		c.fields(&r.Source, &r.Name, &r.ExternalID, &r.Version, &r.Created, &r.Modified, &r.Deleted, &r.Formerly, &r.Renamed)
	case *broker.DirectoryMember:
		c.fields(&r.Since, &r.Left, &r.As)
	case *broker.SCIMToken:
		c.fields(&r.Source, &r.By, &r.Created, &r.Expires, &r.Revoked)
	default:
		return false
	}
	return true
}

// directoryRow returns an empty row with a key of the directory; nil for any other key.
func directoryRow(key broker.Key) broker.Row {
	switch k := key.(type) {
	case broker.DirectoryUserID:
		return &broker.DirectoryUser{ID: k}
	case broker.DirectoryGroupID:
		return &broker.DirectoryGroup{ID: k}
	case broker.DirectoryMemberKey:
		return &broker.DirectoryMember{DirectoryMemberKey: k}
	case broker.SCIMTokenID:
		return &broker.SCIMToken{ID: k}
	}
	return nil
}

// locateDirectory is locate for keys of the directory.
func locateDirectory(key broker.Key) (t table, id []byte, ok bool) {
	switch k := key.(type) {
	case broker.DirectoryUserID:
		return directoryUsers, k[:], true
	case broker.DirectoryGroupID:
		return directoryGroups, k[:], true
	case broker.DirectoryMemberKey:
		return directoryMembers, append(k.Group[:], k.User[:]...), true
	case broker.SCIMTokenID:
		return scimTokens, k[:], true
	}
	return 0, nil, false
}
