package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"time"

	"accessbroker.internal/broker"
)

// spentTables is the table of what may be used once, such as proofs of possession, as
// version 11 had it: a row for each at a random place, and another one in the index.
const spentTables = `
CREATE TABLE spent (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, expires INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX spent_expires ON spent (expires);
`

// usedTables replaces it. Rows are in the order of their expiry, so that the rows of a group
// are next to each other. at is the second of the expiry, rounded up, and a number.
const usedTables = `
CREATE TABLE used (at INTEGER PRIMARY KEY, id BLOB NOT NULL);
INSERT INTO used SELECT ((expires + 999) / 1000 << 24) + row_number() OVER (PARTITION BY (expires + 999) / 1000), id FROM spent;
DROP TABLE spent;
`

const usedBits = 24 // of the number: 16 million in one second

// Every issuance with a proof asks whether it was used. So the writer keeps the IDs of what was
// used in memory until it expires, and the table is read only at the first such call. Half of
// an ID is enough: IDs are hashes, and a collision would only refuse a proof.

// used is what was used and has not expired.
type used struct {
	ids  map[usedID]int64 // the second of expiry
	last map[int64]int64  // by second of expiry: the number of the last row

	expired time.Time // when expire last looked
}

type usedID [16]byte

func halfOf(key broker.SpentKey) usedID { return usedID(key[:16]) }

// usedBody is the body of each row of package broker: only whether there is one matters.
var usedBody = func() []byte {
	body, err := encodeBody(&broker.Spent{}, nil)
	if err != nil {
		panic(err) // it has no input
	}
	return body
}()

// body returns the body of a row; nil if there is none.
func (u *used) body(key broker.SpentKey) []byte {
	if u == nil {
		return nil
	}
	if _, ok := u.ids[halfOf(key)]; ok {
		return usedBody
	}
	return nil
}

// loadUsed reads the table, unless memory has it. It runs in the transaction of a group, which
// no other process can write to; and if one wrote before, the group is run again.
func (w *writer) loadUsed(ctx context.Context) error {
	if w.used != nil {
		return nil
	}
	u := &used{ids: map[usedID]int64{}, last: map[int64]int64{}}
	err := each(ctx, w.conn, "SELECT at, id FROM used ORDER BY at", nil, func(rows *sql.Rows) error {
		var at int64
		var id sql.RawBytes
		if err := rows.Scan(&at, &id); err != nil {
			return err
		}
		key, err := spent.key(id)
		if err != nil {
			return err
		}
		u.ids[halfOf(key.(broker.SpentKey))] = at >> usedBits
		u.last[at>>usedBits] = at & (1<<usedBits - 1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading what was used: %w", err)
	}
	w.used = u
	return nil
}

var errUsed = errors.New("what was used can be read only in an Update")

// writeUsed writes a row. The number of a row that is rolled back stays free.
func (w *writer) writeUsed(ctx context.Context, r *row) error {
	if err := w.loadUsed(ctx); err != nil {
		return err
	}
	expires, _ := r.extra[0].(int64)
	second := (expires + 999) / 1000
	w.used.last[second]++
	if w.used.last[second]>>usedBits != 0 {
		return errors.New("too much was used that expires in the same second")
	}
	r.at = second<<usedBits | w.used.last[second]
	return w.exec(ctx, "INSERT INTO used (at, id) VALUES (?, ?)", r.at, r.id)
}

// add adds what another process used.
func (u *used) add(at int64, key broker.SpentKey) {
	if u == nil {
		return
	}
	u.ids[halfOf(key)] = at >> usedBits
	u.last[at>>usedBits] = max(u.last[at>>usedBits], at&(1<<usedBits-1))
}

// follow adds what a group used, once it is committed.
func (u *used) follow(g *group) {
	if u == nil {
		return
	}
	for _, r := range g.order {
		if key, ok := r.key.(broker.SpentKey); ok {
			u.ids[halfOf(key)] = r.at >> usedBits
		}
	}
}

// sweepUsed deletes what has expired: nothing accepts it any longer.
func (s *Store) sweepUsed(ctx context.Context, now time.Time) (total int64, err error) {
	second := now.Unix()
	for {
		n := 0
		err := s.exec(ctx, func(ctx context.Context, w *writer) error {
			n = 0
			query, err := w.prepared(ctx, "DELETE FROM used WHERE at IN (SELECT at FROM used WHERE at < ? ORDER BY at LIMIT ?) RETURNING at, id")
			if err != nil {
				return err
			}
			rows, err := query.QueryContext(ctx, (second+1)<<usedBits, sweepBatch)
			if err != nil {
				return err
			}
			for rows.Next() {
				var at int64
				var id []byte
				if err := rows.Scan(&at, &id); err != nil {
					return errors.Join(err, rows.Close())
				}
				w.used.drop(at, id)
				n++
			}
			return errors.Join(rows.Err(), rows.Close())
		})
		if total += int64(n); err != nil || n < sweepBatch {
			return total, err
		}
	}
}

// expire forgets what has expired, and was perhaps deleted by another process. It looks at
// everything, at most once a minute.
func (u *used) expire(now time.Time) {
	if u == nil || now.Sub(u.expired) < time.Minute {
		return
	}
	u.expired = now
	for id, second := range u.ids {
		if second < now.Unix() {
			delete(u.ids, id)
		}
	}
	maps.DeleteFunc(u.last, func(second, _ int64) bool { return second < now.Unix() })
}

// drop forgets a row that has expired, whether or not it is deleted in the end.
func (u *used) drop(at int64, id []byte) {
	if u == nil || len(id) < len(usedID{}) {
		return
	}
	delete(u.ids, usedID(id[:len(usedID{})]))
	delete(u.last, at>>usedBits)
}
