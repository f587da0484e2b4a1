package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/evidence"
)

// The table tallies is the projection of the log that counts records by their traits
// (package evidence), in buckets of consecutive records. A range of any length is the sum
// of few buckets, and of the records at its ends, which are read one by one. So the cost of
// a report hardly depends on the length of the log. The file follow.go explains how the
// table follows the log.

const tallyTables = `
CREATE TABLE tallied (one INTEGER PRIMARY KEY CHECK (one = 1), record INTEGER NOT NULL, traits INTEGER NOT NULL);
INSERT INTO tallied VALUES (1, 0, 0);
CREATE TABLE tallies (level INTEGER NOT NULL, bucket INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (level, bucket)) WITHOUT ROWID;
`

// Buckets have 1<<level records.
const (
	fineLevel   = 10
	coarseLevel = 16
)

const (
	// maxTallied bounds the records that one report reads one by one: those at the ends of
	// its range, and the newest ones, which are not counted yet.
	maxTallied = 1<<14 + 2<<fineLevel

	maxNotedTallies = 1 << 14 // sums in memory, of about 300 bytes each
)

// newTallying returns the projection of tallies.
func newTallying() *projection {
	return &projection{
		table: "tallied", doing: "counting the log's records by their traits: evidence is behind", every: time.Second,
		write: make(chan struct{}, 1), empty: func() addition { return &traitTally{fine: map[int64]evidence.Tally{}} },
	}
}

// forgetOtherTraits deletes counts by the traits of another version of this program, so
// that the log is counted again from its start.
// forgetOlderTraits is forgetOtherTraits for a database whose replicas may have several
// versions: the newest decides.
func forgetOlderTraits(ctx context.Context, w *writer) error {
	if err := w.exec(ctx, "DELETE FROM tallies WHERE (SELECT traits FROM tallied) < ?", audit.TraitsVersion); err != nil {
		return err
	}
	return w.exec(ctx, "UPDATE tallied SET record = 0, traits = ? WHERE traits < ?", audit.TraitsVersion, audit.TraitsVersion)
}

func forgetOtherTraits(ctx context.Context, conn *sql.Conn) error {
	const query = "DELETE FROM tallies WHERE (SELECT traits FROM tallied) <> ?; UPDATE tallied SET record = 0, traits = ? WHERE traits <> ?"
	if _, err := conn.ExecContext(ctx, query, audit.TraitsVersion, audit.TraitsVersion, audit.TraitsVersion); err != nil {
		return fmt.Errorf("preparing the counts of records by their traits: %w", err)
	}
	return nil
}

// A traitTally is what a range of records adds to tallies: the counts of fine buckets, by
// number. The number of a bucket is the ids of its records without their last bits, so
// that each log has buckets of its own.
type traitTally struct {
	fine map[int64]evidence.Tally
	sums int
}

func (t *traitTally) note(id int64, e *audit.Entry, at time.Time) {
	t.add(id, e.LeafHash, e.Record().Sample(at))
}

func (t *traitTally) read(id int64, leaf []byte) error {
	r, err := audit.Decode(leaf)
	if err == nil {
		t.add(id, audit.LeafHash(leaf), r.Sample(r.Time))
	}
	return err
}

func (t *traitTally) add(id int64, hash audit.Digest, s audit.Sample) {
	bucket := t.fine[id>>fineLevel]
	if bucket == nil {
		bucket = evidence.Tally{}
		t.fine[id>>fineLevel] = bucket
	}
	before := len(bucket)
	bucket.Add(broker.RecordID(id).Index(), hash, s)
	t.sums += len(bucket) - before
}

func (t *traitTally) size() (now, most int) { return t.sums, maxNotedTallies }

func (t *traitTally) complete(*viewTx) error { return nil }

// write adds the counts to the fine buckets and to the coarse ones that contain them.
func (t *traitTally) write(ctx context.Context, w *writer) error {
	coarse := map[int64]evidence.Tally{}
	for bucket, tally := range t.fine {
		if err := w.addTally(ctx, fineLevel, bucket, tally); err != nil {
			return err
		}
		above := bucket >> (coarseLevel - fineLevel)
		if coarse[above] == nil {
			coarse[above] = evidence.Tally{}
		}
		coarse[above].Merge(tally)
	}
	for bucket, tally := range coarse {
		if err := w.addTally(ctx, coarseLevel, bucket, tally); err != nil {
			return err
		}
	}
	return nil
}

const selectTally = "SELECT body FROM tallies WHERE level = ? AND bucket = ?"

func (w *writer) addTally(ctx context.Context, level int, bucket int64, tally evidence.Tally) error {
	query, err := w.prepared(ctx, selectTally)
	if err != nil {
		return err
	}
	sum := evidence.Tally{}
	var body []byte
	switch err := query.QueryRowContext(ctx, level, bucket).Scan(&body); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(body, &sum); err != nil {
			return err
		}
	}
	sum.Merge(tally)
	if body, err = json.Marshal(sum); err != nil {
		return err
	}
	return w.exec(ctx, "INSERT INTO tallies (level, bucket, body) VALUES (?, ?, ?) ON CONFLICT (level, bucket) DO UPDATE SET body = excluded.body", level, bucket, body)
}

// Tally implements evidence.Source. It counts only records that a signed checkpoint
// covers.
func (s *Store) Tally(ctx context.Context, q evidence.Query) (tally evidence.Tally, basis evidence.Basis, err error) {
	if err := s.catchUpNow(ctx, s.tallying); err != nil {
		return nil, basis, err
	}
	log, err := s.Log(ctx)
	if err != nil {
		return nil, basis, err
	}
	signed, err := s.Checkpoint(ctx)
	if errors.Is(err, broker.ErrNotFound) {
		return nil, basis, refuse(broker.ErrUnavailable, "the log has no signed checkpoint yet: try again in a second")
	}
	if err != nil {
		return nil, basis, err
	}
	checkpoint, err := audit.OpenCheckpoint(signed, log.Public)
	if err != nil {
		return nil, basis, err
	}
	basis = evidence.Basis{Origin: log.Origin, Size: checkpoint.Size, Root: checkpoint.Root}
	if q.Size > basis.Size {
		return nil, basis, refuse(broker.ErrInvalidRequest, fmt.Sprintf("the newest checkpoint covers %d records of the log, fewer than %d", basis.Size, q.Size))
	}
	err = s.View(ctx, func(tx broker.Tx) (err error) {
		v := tx.(*viewTx)
		if q.Size > 0 && q.Size < basis.Size {
			basis.Size = q.Size
			if basis.Root, err = audit.RootAt(q.Size, rowHashes(ctx, v.tx, log.Epoch)); err != nil {
				return unavailable("reading the hashes of the log", err)
			}
		}
		tally, err = v.tally(log.Epoch, q, &basis)
		return err
	})
	return tally, basis, err
}

func refuse(err error, detail string) error { return &broker.Refusal{Err: err, Detail: detail} }

// tally counts the records of a query and notes their range in its basis.
func (v *viewTx) tally(epoch int64, q evidence.Query, basis *evidence.Basis) (evidence.Tally, error) {
	low, err := v.indexAt(epoch, q.From, basis.Size)
	if err != nil {
		return nil, err
	}
	high, err := v.indexAt(epoch, q.To, basis.Size)
	if err != nil {
		return nil, err
	}
	basis.First, basis.Count = low, max(high-low, 0)
	last, err := v.position(v.s.tallying)
	if err != nil {
		return nil, err
	}
	counted, sum := int64(last), evidence.Tally{}
	one := v.s.tallying.empty().(*traitTally)
	first, after, read := recordID(epoch, low), recordID(epoch, high), int64(0)
	for id := first; id < after; {
		level := levelAt(id, min(after, counted+1))
		if level > 0 {
			if err := v.addBucket(level, id>>level, sum); err != nil {
				return nil, err
			}
			id += 1 << level
			continue
		}
		end := min((id>>fineLevel+1)<<fineLevel, after)
		if read += end - id; read > maxTallied {
			return nil, refuse(broker.ErrUnavailable, fmt.Sprintf("the newest %d records of the log are not counted yet: try again in a moment", after-1-counted))
		}
		if err := v.addRecords(id, end, one); err != nil {
			return nil, err
		}
		id = end
	}
	for _, t := range one.fine {
		sum.Merge(t)
	}
	return sum, nil
}

// levelAt returns the level of the largest bucket that begins at an id and ends before
// another; zero: none.
func levelAt(id, end int64) int {
	for _, level := range []int{coarseLevel, fineLevel} {
		if id&(1<<level-1) == 0 && id+1<<level <= end {
			return level
		}
	}
	return 0
}

func (v *viewTx) addBucket(level int, bucket int64, sum evidence.Tally) error {
	var body []byte
	err := v.tx.QueryRowContext(v.ctx, selectTally, level, bucket).Scan(&body)
	var t evidence.Tally
	if err == nil {
		err = json.Unmarshal(body, &t)
	}
	if err != nil {
		return unavailable("reading the counts of records by their traits", err)
	}
	sum.Merge(t)
	return nil
}

// addRecords counts records one by one.
func (v *viewTx) addRecords(first, after int64, sum *traitTally) error {
	err := each(v.ctx, v.tx, "SELECT id, leaf FROM records WHERE id >= ? AND id < ?", []any{first, after}, func(rows *sql.Rows) error {
		var id int64
		var leaf sql.RawBytes
		if err := rows.Scan(&id, &leaf); err != nil {
			return err
		}
		if err := sum.read(id, leaf); err != nil {
			return fmt.Errorf("record %d: %w", broker.RecordID(id).Index(), err)
		}
		return nil
	})
	if err != nil {
		return unavailable("counting records", err)
	}
	return nil
}
