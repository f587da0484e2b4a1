package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"accessbroker.internal/broker"
)

// sweepBatch is how many rows one transaction of Sweep deletes at most.
const sweepBatch = 500

// Sweep deletes rows that have expired: idempotency keys, counters, open asks,
// sessions, logouts, logins, deliveries, memberships, seen security events, spent proofs, status lists, notices that were delivered, and the
// index rows of leases that ended by time. It uses small transactions, so that
// other Updates do not wait long, and returns the number of rows deleted.
// Requests, leases and records are kept. Call it about once a minute: lists and
// counts of live leases read the rows that it has not deleted yet.
func (s *Store) Sweep(ctx context.Context, now time.Time) (int64, error) {
	var total int64
	for _, t := range []table{idempotency, counters, asks, sessions, logouts, logins, deliveries, signals, directoryUsers, directoryGroups, directoryMembers, scimTokens, statusLists} {
		for {
			n, err := s.sweep(ctx, t, now)
			if err != nil {
				return total, fmt.Errorf("sweeping %s: %w", tables[t].name, err)
			}
			total += n
			if n < sweepBatch {
				break
			}
		}
	}
	for {
		deleted, err := s.delete(ctx, "DELETE FROM notices WHERE id IN (SELECT id FROM notices INDEXED BY notices_told WHERE due IS NULL LIMIT ?)", sweepBatch)
		if err != nil {
			return total, fmt.Errorf("sweeping notices: %w", err)
		}
		total += deleted
		if deleted < sweepBatch {
			break
		}
	}
	for {
		deleted, err := s.delete(ctx, "DELETE FROM rests WHERE (subject, request) IN (SELECT subject, request FROM rests INDEXED BY rests_until WHERE until <= ? LIMIT ?)", now.UnixMilli(), sweepBatch)
		if err != nil {
			return total, fmt.Errorf("sweeping what rests on facts: %w", err)
		}
		total += deleted
		if deleted < sweepBatch {
			break
		}
	}
	if n, err := s.sweepUsed(ctx, now); err != nil {
		return total, fmt.Errorf("sweeping what was used: %w", err)
	} else {
		total += n
	}
	if n, err := s.sweepHeldSignals(ctx); err != nil {
		return total, fmt.Errorf("sweeping held events: %w", err)
	} else {
		total += n
	}
	if s.Shared() {
		if n, err := s.delete(ctx, deleteWriters, sweepBatch); err != nil {
			return total, fmt.Errorf("sweeping processes that ended: %w", err)
		} else {
			total += n
		}
	}
	n, err := s.sweepStandings(ctx, now)
	if total += n; err != nil {
		return total, fmt.Errorf("sweeping subjects of facts: %w", err)
	}
	for table, name := range holdingTables {
		n, err := s.sweepIndex(ctx, table, now.UnixMilli())
		if total += n; err != nil {
			return total, fmt.Errorf("sweeping %s leases: %w", name, err)
		}
	}
	if err := s.moveSince(ctx, now.UnixMilli()); err != nil {
		return total, fmt.Errorf("noting which requests carry live leases: %w", err)
	}
	return total, nil
}

// FollowSweep makes memory follow the Sweep of another process. Call it as often as Sweep.
func FollowSweep(ctx context.Context, s *Store, now time.Time) error {
	for table := range holdingTables {
		for more := true; more; {
			var ids, carried []broker.LeaseID
			err := s.readHoldings(ctx, func(h *holdings) { ids, carried = h.expired(table, now.UnixMilli(), sweepBatch) })
			if err != nil {
				return err
			}
			s.holdings.drop(table, append(ids, carried...), now.UnixMilli())
			more = len(ids)+len(carried) > 0
		}
	}
	return s.forgetIdleStandings(ctx, now)
}

// sweepIndex deletes the expired rows of live or lingering. Memory knows them.
func (s *Store) sweepIndex(ctx context.Context, table int, now int64) (total int64, err error) {
	query := "DELETE FROM " + holdingTables[table] + " WHERE id = ? AND until <= ?"
	for {
		var ids, carried []broker.LeaseID
		if err := s.readHoldings(ctx, func(h *holdings) { ids, carried = h.expired(table, now, sweepBatch) }); err != nil || len(ids)+len(carried) == 0 {
			return total, err
		}
		s.holdings.drop(table, carried, now)
		if len(ids) == 0 {
			continue
		}
		var deleted int64
		err := s.exec(ctx, func(ctx context.Context, w *writer) error {
			deleted = 0
			for _, id := range ids {
				n, err := w.execCount(ctx, query, id[:], now)
				if deleted += n; err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return total, err
		}
		total += deleted
		s.holdings.drop(table, ids, now)
	}
}

func (s *Store) sweep(ctx context.Context, t table, now time.Time) (int64, error) {
	name := tables[t].name
	query := fmt.Sprintf("DELETE FROM %s WHERE id IN (SELECT id FROM %s WHERE expires <= ? LIMIT ?)", name, name)
	return s.delete(ctx, query, now.UnixMilli(), sweepBatch)
}

// delete runs one statement in the transaction of a group, and returns the number
// of rows that it deleted.
func (s *Store) delete(ctx context.Context, query string, args ...any) (n int64, err error) {
	err = s.exec(ctx, func(ctx context.Context, w *writer) (err error) {
		n, err = w.execCount(ctx, query, args...)
		return err
	})
	return n, err
}

// An Active is the number of live leases of one entitlement and issuer.
type Active struct {
	Entitlement, Issuer string
	Leases              int64
}

// CountPending counts the requests that are pending at now, for a gauge. It reads
// only their index.
func (s *Store) CountPending(ctx context.Context, now time.Time) (n int64, err error) {
	query := "SELECT count(*) FROM requests INDEXED BY requests_pending WHERE lapses > ?"
	if err := s.readers.QueryRowContext(ctx, query, now.UnixMilli()).Scan(&n); err != nil {
		return 0, unavailable("counting pending requests", err)
	}
	return n, nil
}

// SigningKeys returns all keys of a purpose, including the retired ones.
func (s *Store) SigningKeys(ctx context.Context, purpose string) (keys []*broker.SigningKey, err error) {
	err = each(ctx, s.readers, "SELECT body FROM signing_keys WHERE purpose = ? ORDER BY id", []any{purpose}, func(rows *sql.Rows) error {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return err
		}
		k := &broker.SigningKey{}
		keys = append(keys, k)
		return decodeBody(body, k)
	})
	if err != nil {
		return nil, unavailable("reading signing keys", err)
	}
	return keys, nil
}

// Blocks returns the blocks in force.
func (s *Store) Blocks(ctx context.Context) (list []*broker.Block, err error) {
	err = each(ctx, s.readers, "SELECT body FROM blocks ORDER BY id", nil, func(rows *sql.Rows) error {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return err
		}
		b := &broker.Block{}
		if err := decodeBody(body, b); err != nil {
			return err
		}
		if b.Lifted.IsZero() {
			list = append(list, b)
		}
		return nil
	})
	if err != nil {
		return nil, unavailable("reading the blocks", err)
	}
	return list, nil
}
