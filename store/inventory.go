package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
)

// Inventory reads the inventory's tables. It implements inventory.Store.
type Inventory struct{ s *Store }

var _ inventory.Store = Inventory{}

// Inventory returns the reader of the inventory.
func (s *Store) Inventory() Inventory { return Inventory{s} }

// Identities returns a page of the identities that records name, in the order of their ids.
// The page has no identity only if there are no more.
func (v Inventory) Identities(ctx context.Context, q inventory.Query) (page []*inventory.Seen, err error) {
	err = v.survey(ctx, func(tx *viewTx) (err error) {
		page, err = tx.identities(q)
		return err
	})
	return page, err
}

// survey reads the inventory.
func (v Inventory) survey(ctx context.Context, f func(*viewTx) error) error {
	if err := v.s.catchUpNow(ctx, v.s.surveying); err != nil {
		return err
	}
	return v.s.View(ctx, func(tx broker.Tx) error {
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
func (v Inventory) Seen(ctx context.Context, id string) (seen *inventory.Seen, err error) {
	err = v.survey(ctx, func(tx *viewTx) error {
		return each(ctx, tx.tx, "SELECT n, id, body FROM identities WHERE id = ?", []any{id}, func(rows *sql.Rows) (err error) {
			_, seen, err = scanSeen(rows)
			return err
		})
	})
	return seen, err
}

// Uses returns which entitlements identities used, by identity and entitlement. An
// identity has at most inventory.MaxUses.
func (v Inventory) Uses(ctx context.Context, ids ...string) (uses map[string]map[string]*inventory.Use, err error) {
	uses = make(map[string]map[string]*inventory.Use, len(ids))
	var args []any
	for _, id := range ids {
		args = append(args, id)
	}
	err = v.survey(ctx, func(tx *viewTx) error {
		return eachBatch(tx, "SELECT id, entitlement, uses.body FROM identities CROSS JOIN uses ON identity = n WHERE id IN (", "?", ")", 1, args, func(rows *sql.Rows) error {
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
func (v Inventory) UsesOf(ctx context.Context, entitlement string, after int64, limit int) (page []inventory.IdentityUse, next int64, err error) {
	const query = "SELECT identity, id, kind, uses.body FROM uses INDEXED BY uses_entitlement CROSS JOIN identities ON n = identity WHERE entitlement = ? AND identity > ? ORDER BY identity LIMIT ?"
	err = v.survey(ctx, func(tx *viewTx) error {
		return each(ctx, tx.tx, query, []any{entitlement, after, limit}, func(rows *sql.Rows) error {
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
func (v Inventory) PolicyUses(ctx context.Context) (map[string]*inventory.Use, error) {
	return v.totals(ctx, totalPolicy)
}

// EntitlementUses returns how entitlements and their scopes were used by all identities,
// by name.
func (v Inventory) EntitlementUses(ctx context.Context) (map[string]*inventory.Use, error) {
	return v.totals(ctx, totalEntitlement)
}

func (v Inventory) totals(ctx context.Context, kind string) (totals map[string]*inventory.Use, err error) {
	err = v.survey(ctx, func(tx *viewTx) (err error) {
		totals, err = tx.useTotals(kind)
		return err
	})
	return totals, err
}

// Surveyed returns the number of identities that records name, and of records at the end of
// the log that the inventory does not contain yet.
func (v Inventory) Surveyed(ctx context.Context) (identities, behind int64, err error) {
	err = v.survey(ctx, func(tx *viewTx) (err error) {
		if behind, err = tx.recordsBehind(v.s.surveying); err != nil {
			return err
		}
		return tx.tx.QueryRowContext(ctx, "SELECT count(*) FROM identities").Scan(&identities)
	})
	return identities, behind, err
}

// CountHeld returns the number of live leases of each holder who has any.
func (v Inventory) CountHeld(ctx context.Context, holders []string, now time.Time) (map[string]int, error) {
	counts := map[string]int{}
	err := v.s.readHoldings(ctx, func(h *holdings) {
		byHash := make(map[uint64]string, len(holders))
		for _, holder := range holders {
			byHash[h.hash(holder)] = holder
		}
		for c := range h.tables[liveTable].before(broker.LeaseID{}) {
			for i, hash := range c.holders {
				if holder, wanted := byHash[hash]; wanted && c.leases[i].until > now.UnixMilli() {
					counts[holder]++
				}
			}
		}
	})
	return counts, err
}

// RulesAt returns the rules that were in force at a time, or the first ones if the log
// begins later. Without the folder of rules, it returns no files.
func (v Inventory) RulesAt(ctx context.Context, at time.Time) (rules inventory.RulesAt, err error) {
	if err := v.s.catchUpNow(ctx, v.s.counting); err != nil {
		return rules, err
	}
	var files map[string]audit.Digest
	err = v.s.View(ctx, func(tx broker.Tx) error {
		const query = "SELECT leaf FROM events CROSS JOIN records ON records.id = events.record WHERE kind = ? ORDER BY record"
		return each(ctx, tx.(*viewTx).tx, query, []any{string(audit.PolicyLoaded)}, func(rows *sql.Rows) error {
			var leaf sql.RawBytes
			if err := rows.Scan(&leaf); err != nil {
				return err
			}
			r, err := audit.Decode(leaf)
			if err != nil || r.Rules == nil {
				return err
			}
			if rules.From.IsZero() {
				rules.From = r.Time
			}
			if files == nil || !r.Time.After(at) {
				files = r.Rules.Files
			}
			return nil
		})
	})
	if err != nil {
		return rules, unavailable("reading earlier rules", err)
	}
	rules.Files, err = v.s.keptRules(ctx, files)
	return rules, err
}
