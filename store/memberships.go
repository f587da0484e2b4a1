package store

import (
	"context"
	"database/sql"
	"strings"

	"accessbroker.internal/broker"
)

// membershipTables is the part of schema version 10 for memberships.
const membershipTables = `
CREATE TABLE memberships (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, issuer TEXT NOT NULL, holder TEXT NOT NULL, differs TEXT, expires INTEGER) WITHOUT ROWID;
CREATE INDEX memberships_issuer ON memberships (issuer, id);
CREATE INDEX memberships_holder ON memberships (holder, id);
CREATE INDEX memberships_differs ON memberships (differs, issuer) WHERE differs IS NOT NULL;
CREATE INDEX memberships_expires ON memberships (expires) WHERE expires IS NOT NULL;
`

// membershipColumns returns the columns by which a membership is found.
func membershipColumns(m *broker.Membership) []any {
	columns := []any{m.Issuer, m.Holder, nil, nil}
	if m.Difference != broker.NoDifference {
		columns[2] = string(m.Difference)
	}
	if until := m.Until(); !until.IsZero() {
		columns[3] = ceilMillis(until)
	}
	return columns
}

// maxMemberships bounds a page of memberships.
const maxMemberships = 500

// Memberships are the memberships in a Store.
type Memberships struct{ s *Store }

// MembershipsIn returns the memberships in a Store.
func MembershipsIn(s *Store) Memberships { return Memberships{s} }

// List lists memberships by their IDs.
func (m Memberships) List(ctx context.Context, q broker.MembershipQuery) (page []*broker.Membership, err error) {
	where, args := []string{"id > ?"}, []any{q.After[:]}
	if q.Issuer != "" {
		where, args = append(where, "issuer = ?"), append(args, q.Issuer)
	}
	if q.Holder != "" {
		where, args = append(where, "holder = ?"), append(args, q.Holder)
	}
	if q.Differs {
		where = append(where, "differs IS NOT NULL")
	}
	if q.Limit <= 0 || q.Limit > maxMemberships {
		q.Limit = maxMemberships
	}
	query := "SELECT id, body FROM memberships WHERE " + strings.Join(where, " AND ") + " ORDER BY id LIMIT ?"
	err = each(ctx, m.s.readers, query, append(args, q.Limit), func(rows *sql.Rows) error {
		var id, body sql.RawBytes
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		key, err := memberships.key(id)
		if err != nil {
			return err
		}
		row, err := decodeRow(key, body)
		if err != nil {
			return err
		}
		page = append(page, row.(*broker.Membership))
		return nil
	})
	if err != nil {
		return nil, unavailable("listing memberships", err)
	}
	return page, nil
}

// A DifferenceCount is the number of memberships of an issuer with a difference.
type DifferenceCount struct {
	Issuer     string
	Difference broker.Difference
	Count      int64
}

// CountDifferences counts memberships with a difference, for gauges.
func (m Memberships) CountDifferences(ctx context.Context) (counts []DifferenceCount, err error) {
	query := "SELECT issuer, differs, count(*) FROM memberships INDEXED BY memberships_differs WHERE differs IS NOT NULL GROUP BY issuer, differs"
	err = each(ctx, m.s.readers, query, nil, func(rows *sql.Rows) error {
		var c DifferenceCount
		err := rows.Scan(&c.Issuer, &c.Difference, &c.Count)
		counts = append(counts, c)
		return err
	})
	if err != nil {
		return nil, unavailable("counting differences of memberships", err)
	}
	return counts, nil
}

// Count counts the memberships of each issuer that leases rely on.
func (m Memberships) Count(ctx context.Context) (counts map[string]int64, err error) {
	counts = map[string]int64{}
	err = each(ctx, m.s.readers, "SELECT issuer, count(*) FROM memberships WHERE expires IS NULL GROUP BY issuer", nil, func(rows *sql.Rows) error {
		var issuer string
		var n int64
		err := rows.Scan(&issuer, &n)
		counts[issuer] = n
		return err
	})
	if err != nil {
		return nil, unavailable("counting memberships", err)
	}
	return counts, nil
}
