package store

import (
	"context"
	"database/sql"
	"encoding/json"

	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
)

// Identities returns a page of the identities that records name, in the order of their ids.
// The page has no identity only if there are no more.
func (s *Store) Identities(ctx context.Context, q inventory.Query) (page []*inventory.Seen, err error) {
	err = s.survey(ctx, func(v *viewTx) (err error) {
		page, err = v.identities(q)
		return err
	})
	return page, err
}

// survey reads the inventory.
func (s *Store) survey(ctx context.Context, f func(*viewTx) error) error {
	if err := s.catchUpNow(ctx, s.surveying); err != nil {
		return err
	}
	return s.View(ctx, func(tx broker.Tx) error {
		if err := f(tx.(*viewTx)); err != nil {
			return unavailable("reading the inventory", err)
		}
		return nil
	})
}

func (v *viewTx) identities(q inventory.Query) (page []*inventory.Seen, err error) {
	query, args := "SELECT n, id, body FROM identities WHERE id > ?", []any{q.After}
	if q.Until != "" {
		query, args = query+" AND id < ?", append(args, q.Until)
	}
	err = each(v.ctx, v.tx, query+" ORDER BY id LIMIT ?", append(args, q.Limit), func(rows *sql.Rows) error {
		_, seen, err := scanSeen(rows)
		page = append(page, seen)
		return err
	})
	return page, err
}

// Seen returns what records say about an identity; nil if none names it.
func (s *Store) Seen(ctx context.Context, id string) (seen *inventory.Seen, err error) {
	err = s.survey(ctx, func(v *viewTx) error {
		return each(ctx, v.tx, "SELECT n, id, body FROM identities WHERE id = ?", []any{id}, func(rows *sql.Rows) (err error) {
			_, seen, err = scanSeen(rows)
			return err
		})
	})
	return seen, err
}

// Uses returns which entitlements identities used, by identity and entitlement. An
// identity has at most inventory.MaxUses.
func (s *Store) Uses(ctx context.Context, ids ...string) (uses map[string]map[string]*inventory.Use, err error) {
	uses = make(map[string]map[string]*inventory.Use, len(ids))
	var args []any
	for _, id := range ids {
		args = append(args, id)
	}
	err = s.survey(ctx, func(v *viewTx) error {
		return eachBatch(v, "SELECT id, entitlement, uses.body FROM identities CROSS JOIN uses ON identity = n WHERE id IN (", "?", ")", 1, args, func(rows *sql.Rows) error {
			var id, entitlement string
			use, err := scanUse(rows, &id, &entitlement)
			if err != nil || len(uses[id]) >= inventory.MaxUses {
				return err
			}
			if uses[id] == nil {
				uses[id] = map[string]*inventory.Use{}
			}
			uses[id][entitlement] = use
			return nil
		})
	})
	return uses, err
}

// scanUse reads a row that ends with the body of a Use.
func scanUse(rows *sql.Rows, before ...any) (*inventory.Use, error) {
	var body sql.RawBytes
	if err := rows.Scan(append(before, &body)...); err != nil {
		return nil, err
	}
	use := &inventory.Use{}
	return use, json.Unmarshal(body, use)
}

// UsesOf returns a page of the identities that used an entitlement, in the order in which
// they first appeared in the log. after is zero for the first page; next is zero after the
// last one.
func (s *Store) UsesOf(ctx context.Context, entitlement string, after int64, limit int) (page []inventory.IdentityUse, next int64, err error) {
	const query = "SELECT identity, id, kind, uses.body FROM uses INDEXED BY uses_entitlement CROSS JOIN identities ON n = identity WHERE entitlement = ? AND identity > ? ORDER BY identity LIMIT ?"
	err = s.survey(ctx, func(v *viewTx) error {
		return each(ctx, v.tx, query, []any{entitlement, after, limit}, func(rows *sql.Rows) error {
			var u inventory.IdentityUse
			use, err := scanUse(rows, &next, &u.Identity, &u.Kind)
			if err != nil {
				return err
			}
			u.Use = *use
			page = append(page, u)
			return nil
		})
	})
	if len(page) < limit {
		next = 0
	}
	return page, next, err
}

// PolicyUses returns how policies were used, by id. Only those that permitted a request or
// a credential are in it.
func (s *Store) PolicyUses(ctx context.Context) (map[string]*inventory.Use, error) {
	return s.totals(ctx, totalPolicy)
}

// EntitlementUses returns how entitlements and their scopes were used by all identities,
// by name.
func (s *Store) EntitlementUses(ctx context.Context) (map[string]*inventory.Use, error) {
	return s.totals(ctx, totalEntitlement)
}

func (s *Store) totals(ctx context.Context, kind string) (totals map[string]*inventory.Use, err error) {
	err = s.survey(ctx, func(v *viewTx) (err error) {
		totals, err = v.useTotals(kind)
		return err
	})
	return totals, err
}

// Surveyed returns the number of identities that records name, and of records at the end of
// the log that the inventory does not contain yet.
func (s *Store) Surveyed(ctx context.Context) (identities, behind int64, err error) {
	err = s.survey(ctx, func(v *viewTx) (err error) {
		if behind, err = v.recordsBehind(s.surveying); err != nil {
			return err
		}
		return v.tx.QueryRowContext(ctx, "SELECT count(*) FROM identities").Scan(&identities)
	})
	return identities, behind, err
}
