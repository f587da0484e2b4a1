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
// sessions, logouts, logins, deliveries, notices that were delivered, and the
// index rows of leases that ended by time. It uses small transactions, so that
// other Updates do not wait long, and returns the number of rows deleted.
// Requests, leases and records are kept. Call it about once a minute: lists and
// counts of live leases read the rows that it has not deleted yet.
func (s *Store) Sweep(ctx context.Context, now time.Time) (int64, error) {
	var total int64
	for _, t := range []table{idempotency, counters, asks, sessions, logouts, logins, deliveries} {
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
	for _, index := range []string{"live", "lingering"} {
		n, err := s.sweepIndex(ctx, index, now)
		if total += n; err != nil {
			return total, fmt.Errorf("sweeping %s leases: %w", index, err)
		}
	}
	return total, nil
}

// indexWindow is how many rows one transaction of sweepIndex reads.
const indexWindow = 2000

// sweepIndex deletes the expired rows of live or lingering. It finds ranges of
// ids on a reader, so that no transaction is long.
func (s *Store) sweepIndex(ctx context.Context, table string, now time.Time) (total int64, err error) {
	for from := []byte{}; ; {
		var to []byte
		err := s.readers.QueryRowContext(ctx, "SELECT max(id) FROM (SELECT id FROM "+table+" WHERE id > ? ORDER BY id LIMIT ?)", from, indexWindow).Scan(&to)
		if err != nil {
			return total, unavailable("reading the index of leases", err)
		}
		if to == nil {
			break
		}
		n, err := s.delete(ctx, "DELETE FROM "+table+" WHERE id > ? AND id <= ? AND until <= ?", from, to, now.UnixMilli())
		if err != nil {
			return total, err
		}
		total += n
		from = to
	}
	return total, nil
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

// CountActive counts the leases that are live at now, for a gauge. It reads a short
// row per lease.
func (s *Store) CountActive(ctx context.Context, now time.Time) (counts []Active, err error) {
	query := `SELECT entitlement, issuer, n FROM kinds JOIN
		(SELECT kind, count(*) AS n FROM live WHERE until > ? GROUP BY kind) ON kind = id ORDER BY id`
	err = each(ctx, s.readers, query, []any{now.UnixMilli()}, func(rows *sql.Rows) error {
		var a Active
		err := rows.Scan(&a.Entitlement, &a.Issuer, &a.Leases)
		counts = append(counts, a)
		return err
	})
	if err != nil {
		return nil, unavailable("counting live leases", err)
	}
	return counts, nil
}

// CountStuck counts the leases that are stuck at now (broker.LeaseStuck), for a
// gauge. It reads a short row per live lease, and the bodies of those that are
// being revoked.
func (s *Store) CountStuck(ctx context.Context, now time.Time) (n int64, err error) {
	query := "SELECT body FROM live CROSS JOIN leases ON leases.id = live.id WHERE until = ?"
	err = each(ctx, s.readers, query, []any{int64(untilEnded)}, func(rows *sql.Rows) error {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return err
		}
		var l broker.Lease
		if err := decodeBody(body, &l); err != nil {
			return err
		}
		if l.State(now) == broker.LeaseStuck {
			n++
		}
		return nil
	})
	if err != nil {
		return 0, unavailable("counting stuck leases", err)
	}
	return n, nil
}

// CountPending counts the requests that are pending at now, by entitlement.
func (s *Store) CountPending(ctx context.Context, now time.Time) (map[string]int64, error) {
	counts := map[string]int64{}
	query := "SELECT body FROM requests INDEXED BY requests_pending WHERE lapses > ?"
	err := each(ctx, s.readers, query, []any{now.UnixMilli()}, func(rows *sql.Rows) error {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return err
		}
		var r broker.Request
		if err := decodeBody(body, &r); err != nil {
			return err
		}
		counts[r.Entitlement]++
		return nil
	})
	if err != nil {
		return nil, unavailable("counting pending requests", err)
	}
	return counts, nil
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
