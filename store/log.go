package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// A Log is one of the logs in a database. Records are appended to the newest.
type Log struct {
	Epoch  int64  // 1 for the first
	Origin string // its name (C2SP tlog-checkpoint)
	Public string // its key, as a signed-note verifier key
}

// An epoch is a log that is being opened.
type epoch struct {
	origin, public string
	key            *broker.SigningKey
	first          *audit.Entry
	successor      bool // it must follow another log
	recovery       *broker.Recovery
	second         *audit.Entry
}

// ErrLogOpen means that the database already has a log.
var ErrLogOpen = errors.New("the database has a log already")

// OpenLog opens the first log of the database, with its name, its public key, the
// sealed private key and its first record, in one transaction. Nothing can be
// appended before. It returns ErrLogOpen if there is a log.
func (s *Store) OpenLog(ctx context.Context, origin, public string, key *broker.SigningKey, first *audit.Entry) error {
	return s.submit(&member{ctx: ctx, epoch: &epoch{origin: origin, public: public, key: key, first: first}})
}

// NewEpoch closes the log and opens another, whose first record should name
// the last checkpoint of the old one. The old log stays in the database. In the same
// transaction, every session ends, because its end may be among the records that are lost,
// and the recovery begins, with its record.
func (s *Store) NewEpoch(ctx context.Context, origin, public string, key *broker.SigningKey, first *audit.Entry, r *broker.Recovery, started *audit.Entry) error {
	if r != nil {
		r.RecoveryKey = broker.RecoveryKey(s.Head().Epoch + 1)
	}
	return s.submit(&member{ctx: ctx, epoch: &epoch{origin, public, key, first, true, r, started}})
}

// open begins a new log. Its times continue those of the old one.
func (g *group) open(ctx context.Context, e *epoch) error {
	switch {
	case !e.successor && g.head.Epoch > 0:
		return ErrLogOpen
	case e.successor && g.head.Epoch == 0:
		return unavailable("opening a new log", errNoLog)
	}
	key := g.w.scratch.row()
	if err := key.encode(e.key, &g.w.scratch); err != nil {
		return err
	}
	g.head = Head{Epoch: g.head.Epoch + 1, Time: g.head.Time}
	g.tree = &audit.Tree{}
	tx := &updateTx{rows: []*row{key}, entries: []*audit.Entry{e.first}}
	if e.recovery != nil {
		recovery := g.w.scratch.row()
		if err := recovery.encode(e.recovery, &g.w.scratch); err != nil {
			return err
		}
		tx.rows, tx.entries = append(tx.rows, recovery), append(tx.entries, e.second)
		for _, clear := range []string{"DELETE FROM sessions", "DELETE FROM logins"} {
			if err := g.w.exec(ctx, clear); err != nil {
				return err
			}
		}
	}
	g.join(tx)
	return g.w.exec(ctx, "INSERT INTO logs (epoch, origin, public) VALUES (?, ?, ?)", g.head.Epoch, e.origin, e.public)
}

// Log returns the current log, and broker.ErrNotFound before OpenLog.
func (s *Store) Log(ctx context.Context) (Log, error) { return currentLog(ctx, s.readers) }

func currentLog(ctx context.Context, q queryer) (l Log, err error) {
	err = q.QueryRowContext(ctx, "SELECT epoch, origin, public FROM logs ORDER BY epoch DESC LIMIT 1").Scan(&l.Epoch, &l.Origin, &l.Public)
	if errors.Is(err, sql.ErrNoRows) {
		return Log{}, fmt.Errorf("reading the log's name: %w", broker.ErrNotFound)
	}
	if err != nil {
		return Log{}, unavailable("reading the log's name", err)
	}
	return l, nil
}

// Record returns a record of the current log, and broker.ErrNotFound if it has no
// such record.
func (s *Store) Record(ctx context.Context, index int64) (audit.Item, error) {
	item := audit.Item{Index: index}
	if index >= s.Head().Size {
		if err := s.fresh(ctx); err != nil { // another process may have appended it
			return item, err
		}
	}
	if head := s.Head(); index < 0 || index >= head.Size {
		return item, fmt.Errorf("reading record %d of %d: %w", index, head.Size, broker.ErrNotFound)
	}
	err := s.readers.QueryRowContext(ctx, "SELECT leaf, hashes, openings FROM records WHERE id = ?", recordID(s.Head().Epoch, index)).
		Scan(&item.Leaf, &item.Hashes, &item.Openings)
	if err != nil {
		return item, unavailable(fmt.Sprintf("reading record %d", index), err)
	}
	return item, nil
}

// recordBatch is how many records one query reads.
const recordBatch = 64

// Records returns those of the ids that name records of the current log, in its
// order. It leaves out records of earlier logs.
func (s *Store) Records(ctx context.Context, ids []broker.RecordID) (items []audit.Item, err error) {
	var wanted []int64
	for _, id := range ids {
		if id.Epoch() == s.Head().Epoch {
			wanted = append(wanted, int64(id))
		}
	}
	slices.Sort(wanted)
	for batch := range slices.Chunk(wanted, recordBatch) {
		query := "SELECT id, leaf, hashes, openings FROM records WHERE " + idAmong(len(batch)) + " ORDER BY id"
		err := each(ctx, s.readers, query, anys(batch), func(rows *sql.Rows) error {
			item, err := scanItem(rows)
			items = append(items, item)
			return err
		})
		if err != nil {
			return nil, unavailable("reading records", err)
		}
	}
	if len(items) < len(wanted) {
		return nil, unavailable("reading records", fmt.Errorf("the log has %d of %d", len(items), len(wanted)))
	}
	return items, nil
}

// Hashes returns a reader of the current log's tree hashes, for proofs.
func (s *Store) Hashes(ctx context.Context) audit.Rows {
	return rowHashes(ctx, s.readers, s.Head().Epoch)
}

func rowHashes(ctx context.Context, q queryer, epoch int64) audit.Rows {
	return func(record int64) (hashes []byte, err error) {
		err = q.QueryRowContext(ctx, "SELECT hashes FROM records WHERE id = ?", recordID(epoch, record)).Scan(&hashes)
		return hashes, err
	}
}

// keptCheckpoints is how many signed checkpoints of a log are kept. Each of them
// can be proved consistent with any later one.
const keptCheckpoints = 100

// ErrCheckpoint means that a checkpoint can't be saved: the log has another one of the same
// size already, or does not have the records that the checkpoint covers.
var ErrCheckpoint = errors.New("the checkpoint is not one of this log")

// SaveCheckpoint keeps a signed checkpoint over the first size records of the current log.
// It returns ErrCheckpoint for a second one of a size. If other processes write to the
// database, it also compares the checkpoint with the log's records, under the lock of the
// log's end: the caller may have signed what a failover has lost since.
func (s *Store) SaveCheckpoint(ctx context.Context, size int64, signed []byte) error {
	return s.exec(ctx, func(ctx context.Context, w *writer) error {
		if s.Shared() {
			if err := w.checkCheckpoint(ctx, size, signed); err != nil {
				return err
			}
		}
		id := recordID(w.head.Epoch, size)
		n, err := w.execCount(ctx, "INSERT INTO checkpoints (id, note) VALUES (?, ?) ON CONFLICT (id) DO NOTHING", id, string(signed))
		if err != nil {
			return err
		}
		if n == 0 {
			return w.sameCheckpoint(ctx, id, signed)
		}
		return w.exec(ctx, "DELETE FROM checkpoints WHERE id >= ? AND id < (SELECT min(id) FROM (SELECT id FROM checkpoints ORDER BY id DESC LIMIT ?) AS kept)",
			recordID(w.head.Epoch, 0), keptCheckpoints)
	})
}

// checkCheckpoint returns ErrCheckpoint unless the log has the records of a checkpoint.
func (w *writer) checkCheckpoint(ctx context.Context, size int64, signed []byte) error {
	log, err := currentLog(ctx, w.conn)
	if err != nil {
		return err
	}
	c, err := audit.OpenCheckpoint(signed, log.Public)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrCheckpoint, err)
	case c.Size != size || size > w.head.Size:
		return fmt.Errorf("%w: it covers %d records, and the log has %d", ErrCheckpoint, c.Size, w.head.Size)
	}
	root := w.head.Root
	if size < w.head.Size {
		if root, err = audit.RootAt(size, rowHashes(ctx, w.conn, w.head.Epoch)); err != nil {
			return err
		}
	}
	if root != c.Root {
		return fmt.Errorf("%w: the first %d records of the log have the root %s, and it has the root %s", ErrCheckpoint, size, root, c.Root)
	}
	return nil
}

// sameCheckpoint returns ErrCheckpoint unless the saved checkpoint is the same.
func (w *writer) sameCheckpoint(ctx context.Context, id int64, signed []byte) error {
	var saved []byte
	if err := w.conn.QueryRowContext(ctx, "SELECT note FROM checkpoints WHERE id = ?", id).Scan(&saved); err != nil {
		return err
	}
	if !bytes.Equal(saved, signed) {
		return fmt.Errorf("%w: another checkpoint of %d records was published", ErrCheckpoint, broker.RecordID(id).Index())
	}
	return nil
}

// Sync makes the store know every commit that was durable before the call, whichever process
// made it. On SQLite it always does.
func Sync(ctx context.Context, s *Store) error { return s.fresh(ctx) }

// Refuse makes the store refuse every call from now on, as after a failover that lost
// records: the caller has found that the database's log is not the one that this process
// knows. On SQLite it does nothing, because no other process writes.
func Refuse(s *Store) {
	if s.Shared() {
		_ = s.rewind() // it returns the error of later calls
	}
}

// Checkpoint returns the newest signed checkpoint of the current log, and
// broker.ErrNotFound if there is none.
func (s *Store) Checkpoint(ctx context.Context) ([]byte, error) {
	var signed []byte
	err := s.readers.QueryRowContext(ctx, "SELECT note FROM checkpoints WHERE id >= ? ORDER BY id DESC LIMIT 1", recordID(s.Head().Epoch, 0)).Scan(&signed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("reading the checkpoint: %w", broker.ErrNotFound)
	}
	if err != nil {
		return nil, unavailable("reading the checkpoint", err)
	}
	return signed, nil
}

// Prove returns the inclusion proof of a record under the newest checkpoint, and
// broker.ErrNotFound if the checkpoint does not cover the record.
func (s *Store) Prove(ctx context.Context, index int64) (*audit.Proof, error) {
	log, err := s.Log(ctx)
	if err != nil {
		return nil, err
	}
	signed, err := s.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	c, err := audit.OpenCheckpoint(signed, log.Public)
	if err != nil {
		return nil, err
	}
	if index >= c.Size {
		return nil, fmt.Errorf("proving record %d: the newest checkpoint covers %d records: %w", index, c.Size, broker.ErrNotFound)
	}
	item, err := s.Record(ctx, index)
	if err != nil {
		return nil, err
	}
	return audit.Prove(index, item.Leaf, signed, log.Public, s.Hashes(ctx))
}
