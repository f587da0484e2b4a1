package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"strings"

	"accessbroker.internal/broker"
)

// The tables of access reviews. Items are found by campaign, in the order of their numbers;
// those that wait, by their reviewer; and the decisions on one permission, over all
// campaigns.
const campaignTables = `
CREATE TABLE campaigns (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, name TEXT NOT NULL, live INTEGER) WITHOUT ROWID;
CREATE INDEX campaigns_live ON campaigns (live) WHERE live IS NOT NULL;
CREATE INDEX campaigns_name ON campaigns (name);
CREATE TABLE review_items (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, permission TEXT NOT NULL, status INTEGER NOT NULL, reviewer TEXT) WITHOUT ROWID;
CREATE INDEX review_items_reviewer ON review_items (reviewer) WHERE reviewer IS NOT NULL;
CREATE INDEX review_items_permission ON review_items (permission);
CREATE TABLE suspensions (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, live INTEGER) WITHOUT ROWID;
CREATE INDEX suspensions_live ON suspensions (live) WHERE live IS NOT NULL;
`

// itemID returns the id of an item: items of one campaign are neighbours.
func itemID(k broker.ReviewItemKey) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, 20), k.Campaign[:]...), uint32(k.Number))
}

// itemColumns returns the columns by which an item is found. Only an item that waits has a
// reviewer there.
func itemColumns(i *broker.ReviewItem) []any {
	extra := []any{i.Permission.String(), int64(i.Status), nil}
	if i.Status.Waits() {
		extra[2] = i.Reviewer.String()
	}
	return extra
}

// ifTrue returns 1, or nil for NULL.
func ifTrue(b bool) any {
	if b {
		return int64(1)
	}
	return nil
}

func campaignFields(r *broker.Campaign, c *coder) {
	c.fields(&r.Name, (*int)(&r.Status), &r.By, &r.Scheduled, &r.Started, &r.Deadline, &r.Closed, &r.Plan, &r.Revision, &r.Digest,
		&r.Reminded, &r.Escalated, &r.Counts)
}

func planFields(p *broker.CampaignPlan, c *coder) {
	s := &p.Scope
	c.fields(&p.Name, &p.Description, &s.Permits, &s.Marks, &s.Groups, &s.Suppliers, &s.GrantsLongerThan, &p.Reviewers, &p.Fallback, &p.RunBy,
		&p.First, &p.Every, &p.Deadline, &p.Remind, &p.Escalate, &p.Signed)
}

func countsFields(n *broker.CampaignCounts, c *coder) {
	c.fields(&n.Items, &n.Open, &n.Second, &n.Kept, &n.Narrowed, &n.Ended, &n.Disabled, &n.Gone)
}

func itemFields(r *broker.ReviewItem, c *coder) {
	c.fields((*string)(&r.Permission.Kind), &r.Permission.Name, &r.Digest, &r.Reviewer.Group, &r.Reviewer.Person, &r.Fallback, &r.Signed,
		(*int)(&r.Status), &r.Decision, &r.First, &r.Closed)
}

func decidedFields(d *broker.ReviewDecision, c *coder) {
	c.fields((*string)(&d.Verdict), &d.Person, &d.Accounts, &d.Digest, &d.Left, &d.Reason, &d.Salt, &d.Signed, &d.Bulk, &d.Seed, &d.At)
}

func suspensionFields(s *broker.SuspensionRow, c *coder) {
	c.fields(&s.Left, &s.Cause, &s.Item.Campaign, &s.Item.Number, &s.Since, &s.Lifted, &s.Restore, &s.RestoreReason, &s.RestoreAt, &s.RestoreDigest)
}

// CampaignRows lists the rows of access reviews. It is safe for concurrent use.
type CampaignRows struct{ s *Store }

// NewCampaignRows returns the lists of a store.
func NewCampaignRows(s *Store) *CampaignRows { return &CampaignRows{s} }

// Campaigns returns campaigns, newest first: those before an ID, or the newest ones if it is
// zero.
func (r *CampaignRows) Campaigns(ctx context.Context, q broker.CampaignQuery) ([]*broker.Campaign, error) {
	query, args := "SELECT id, body FROM campaigns WHERE id < ?", []any{before(q.Before[:])}
	if q.Live {
		query = "SELECT id, body FROM campaigns INDEXED BY campaigns_live WHERE live = 1 AND id < ?"
	}
	if q.Name != "" {
		query += " AND name = ?"
		args = append(args, q.Name)
	}
	return list[*broker.Campaign](ctx, r.s, campaigns, query+" ORDER BY id DESC LIMIT ?", append(args, q.Limit)...)
}

// ReviewItems returns items, in the order of their campaigns and numbers.
func (r *CampaignRows) ReviewItems(ctx context.Context, q broker.ReviewItemQuery) ([]*broker.ReviewItem, error) {
	var and []string
	var args []any
	add := func(condition string, values ...any) {
		and, args = append(and, condition), append(args, values...)
	}
	from := "review_items"
	switch {
	case len(q.Reviewers) > 0:
		from = "review_items INDEXED BY review_items_reviewer"
		add("reviewer IN ("+strings.TrimSuffix(strings.Repeat("?,", len(q.Reviewers)), ",")+")", anys(q.Reviewers)...)
	case q.Permission != "":
		from = "review_items INDEXED BY review_items_permission"
		add("permission = ?", q.Permission)
	}
	if !q.Campaign.IsZero() {
		add("id > ?", itemID(broker.ReviewItemKey{Campaign: q.Campaign, Number: q.After}))
		add("id <= ?", itemID(broker.ReviewItemKey{Campaign: q.Campaign, Number: int(^uint32(0))}))
	}
	if len(q.Statuses) > 0 {
		add("status IN ("+strings.TrimSuffix(strings.Repeat("?,", len(q.Statuses)), ",")+")", anys(q.Statuses)...)
	}
	if len(and) == 0 {
		return nil, fmt.Errorf("%w: a list of review items needs a condition", broker.ErrInvalidRequest)
	}
	query := "SELECT id, body FROM " + from + " WHERE " + strings.Join(and, " AND ") + " ORDER BY id"
	if q.Newest {
		query += " DESC"
	}
	return list[*broker.ReviewItem](ctx, r.s, reviewItems, query+" LIMIT ?", append(args, q.Limit)...)
}

// ReviewersWaiting returns how many items of a campaign wait for each reviewer.
func (r *CampaignRows) ReviewersWaiting(ctx context.Context, id broker.CampaignID) (map[string]int, error) {
	waiting := map[string]int{}
	query := "SELECT reviewer, count(*) FROM review_items WHERE id > ? AND id <= ? AND reviewer IS NOT NULL GROUP BY reviewer"
	args := []any{itemID(broker.ReviewItemKey{Campaign: id}), itemID(broker.ReviewItemKey{Campaign: id, Number: int(^uint32(0))})}
	err := each(ctx, r.s.readers, query, args, func(rows *sql.Rows) error {
		var reviewer string
		var n int
		err := rows.Scan(&reviewer, &n)
		waiting[reviewer] = n
		return err
	})
	if err != nil {
		return nil, unavailable("counting review items", err)
	}
	return waiting, nil
}

// Suspensions returns the suspensions in force, from a database that this process does not
// write. A database of an earlier version has none.
func (f *Source) Suspensions(ctx context.Context) ([]*broker.SuspensionRow, error) {
	var has int
	if err := f.db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'suspensions'").Scan(&has); err != nil || has == 0 {
		return nil, err
	}
	return listRows[*broker.SuspensionRow](ctx, f.db, suspensions, selectSuspensions)
}

const selectSuspensions = "SELECT id, body FROM suspensions INDEXED BY suspensions_live WHERE live = 1 ORDER BY id"

// Suspensions returns the suspensions in force.
func (r *CampaignRows) Suspensions(ctx context.Context) ([]*broker.SuspensionRow, error) {
	return list[*broker.SuspensionRow](ctx, r.s, suspensions, selectSuspensions)
}

func anys[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}

// list returns the rows of a query for ids and bodies.
func list[R broker.Row](ctx context.Context, s *Store, t table, query string, args ...any) ([]R, error) {
	return listRows[R](ctx, s.readers, t, query, args...)
}

func listRows[R broker.Row](ctx context.Context, q queryer, t table, query string, args ...any) (out []R, err error) {
	err = each(ctx, q, query, args, func(rows *sql.Rows) error {
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
		out = append(out, row.(R))
		return nil
	})
	if err != nil {
		return nil, unavailable("listing "+tables[t].name, err)
	}
	return out, nil
}
