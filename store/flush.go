package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// flush writes the group: the head, its rows, and its records.
func (g *group) flush(ctx context.Context) error {
	if err := g.settle(); err != nil {
		return err
	}
	g.seal()
	g.w.engine.flush()
	// The head first: if another writer moved it, everything that this group has
	// read from memory is out of date, and nothing may be written.
	if err := g.w.step("head", func() error { return g.writeHead(ctx) }); err != nil {
		return fmt.Errorf("writing the head of the log: %w", err)
	}
	if err := g.w.step("rows", func() error { return g.writeRows(ctx) }); err != nil {
		return err
	}
	if err := g.w.step("records", func() error { return g.writeRecords(ctx) }); err != nil {
		return fmt.Errorf("writing the log: %w", err)
	}
	return g.w.engine.finish(ctx, g)
}

// seal sets the time and computes the hashes of the entries, and computes the
// head. All entries of a group have one time, which is never before that of the
// last record.
func (g *group) seal() {
	for _, r := range g.order {
		if block, ok := r.key.(broker.BlockKey); ok {
			g.newBlock(block, r.body)
		}
	}
	if len(g.entries) == 0 {
		return
	}
	if now := audit.Millis(g.w.now()); now.After(g.head.Time) {
		g.head.Time = now
	}
	g.tree = g.tree.Clone() // the transaction may fail, and the writer keeps its tree
	g.nodes = make([][]tlog.Hash, len(g.entries))
	for i, e := range g.entries {
		e.SetTime(g.head.Time)
		g.nodes[i] = g.tree.Append(e.Hash())
	}
	g.head.Size, g.head.Root = g.tree.Size(), g.tree.Root()
}

func (g *group) newBlock(key broker.BlockKey, body []byte) {
	if g.newBlocks == nil {
		g.newBlocks = map[broker.BlockKey][]byte{}
		g.blocksVersion++
	}
	g.newBlocks[key] = bytes.Clone(body)
}

// errMoved means that another process has written since the last group.
var errMoved = errors.New("another writer moved the head of the log")

// maxMoved is how often a group is retried because of errMoved.
const maxMoved = 16

// writeHead moves the head if its nonce is the one that the last group left. It
// always is, unless two processes passed the lock (on a file system that ignores
// locks, for example).
func (g *group) writeHead(ctx context.Context) error {
	args := []any{g.head.Epoch, g.head.Size, g.head.Root[:], g.head.Time.UnixMilli(), g.blocksVersion, g.nonce, g.w.nonce}
	if g.s.Shared() { // the row is locked
		return g.w.exec(ctx, "UPDATE head SET epoch = ?, size = ?, root = ?, time = ?, blocks = ?, nonce = ?, seq = seq + 1 WHERE nonce = ?", args...)
	}
	n, err := g.w.execCount(ctx, "UPDATE head SET epoch = ?, size = ?, root = ?, time = ?, blocks = ?, nonce = ? WHERE nonce = ?", args...)
	if err == nil && n != 1 {
		err = errMoved
	}
	return err
}

// checkHead returns errMoved if the head is not where the last group left it.
func (g *group) checkHead(ctx context.Context) error {
	query, err := g.w.prepared(ctx, "SELECT nonce FROM head")
	if err != nil {
		return err
	}
	var nonce []byte
	if err := query.QueryRowContext(ctx).Scan(&nonce); err != nil {
		return fmt.Errorf("reading the head of the log: %w", err)
	}
	if string(nonce) != string(g.w.nonce) {
		return errMoved
	}
	return nil
}

// upserts are the statements that write a row.
var upserts = func() (u [tableCount]string) {
	for t := range u {
		u[t] = table(t).upsert()
	}
	return u
}()

func (g *group) writeRows(ctx context.Context) error {
	for _, r := range g.order {
		if err := g.writeRow(ctx, r); err != nil {
			return fmt.Errorf("writing %s: %w", tables[r.table].name, err)
		}
	}
	for _, e := range g.execs {
		if err := g.w.exec(ctx, e.query, e.args...); err != nil {
			return fmt.Errorf("writing: %w", err)
		}
	}
	return nil
}

func (g *group) writeRow(ctx context.Context, r *row) error {
	switch {
	case r.carried:
		_, err := g.kindID(ctx, r.index.kind) // memory counts by it
		return err
	case r.lease != nil:
		if err := g.w.exec(ctx, insertCarrying, r.id, r.body, r.lease); err != nil {
			return err
		}
		return g.writeRests(ctx, r)
	case r.table == spent:
		return g.w.writeUsed(ctx, r)
	}
	g.w.scratch.args = append(append(g.w.scratch.args[:0], r.id, r.body), r.extra...)
	if err := g.w.exec(ctx, upserts[r.table], g.w.scratch.args...); err != nil {
		return err
	}
	switch r.table {
	case leases:
		if err := g.w.exec(ctx, unloadLease, r.id); err != nil {
			return err
		}
		return g.writeLeaseIndex(ctx, r)
	case requests:
		return g.writeRests(ctx, r)
	}
	return nil
}

// upsertIndex returns the statement that writes a row of the table live or lingering.
func upsertIndex(table string) string {
	return "INSERT INTO " + table + ` (id, until, kind, request, holder) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
		SET until = excluded.until, kind = excluded.kind, request = excluded.request, holder = excluded.holder`
}

var upsertLive, upsertOutliving = upsertIndex("live"), upsertIndex("lingering")

// writeLeaseIndex writes or deletes the rows by which a lease is found while its
// credential works.
func (g *group) writeLeaseIndex(ctx context.Context, r *row) error {
	if r.index.liveUntil == 0 {
		if err := g.w.exec(ctx, "DELETE FROM live WHERE id = ?", r.id); err != nil {
			return err
		}
	} else if err := g.writeIndexRow(ctx, upsertLive, r, r.index.liveUntil); err != nil {
		return err
	}
	switch {
	case r.index.outlivesUntil != 0:
		return g.writeIndexRow(ctx, upsertOutliving, r, r.index.outlivesUntil)
	case r.index.revoking: // its holder may have returned it before
		return g.w.exec(ctx, "DELETE FROM lingering WHERE id = ?", r.id)
	}
	return nil
}

func (g *group) writeIndexRow(ctx context.Context, upsert string, r *row, until int64) error {
	kind, err := g.kindID(ctx, r.index.kind)
	if err != nil {
		return err
	}
	return g.w.exec(ctx, upsert, r.id, until, kind, r.index.request[:], r.index.holder)
}

// kindID returns the number of a kind of lease, and assigns one to a new kind.
func (g *group) kindID(ctx context.Context, k leaseKind) (int32, error) {
	if id, ok := g.w.kinds[k]; ok {
		return id, nil
	}
	if id, ok := g.newKinds[k]; ok {
		return id, nil
	}
	id := int32(len(g.w.kinds) + len(g.newKinds) + 1)
	if err := g.w.exec(ctx, "INSERT INTO kinds (id, entitlement, issuer) VALUES (?, ?, ?)", id, k.entitlement, k.issuer); err != nil {
		return 0, err
	}
	if g.newKinds == nil {
		g.newKinds = map[leaseKind]int32{}
	}
	g.newKinds[k] = id
	return id, nil
}

const insertRecord = "INSERT INTO records (id, leaf, hashes, openings) VALUES (?, ?, ?, ?)"

func (g *group) writeRecords(ctx context.Context) error {
	first := g.head.Size - int64(len(g.entries))
	hashes := make([]byte, 0, 2*len(g.entries)*tlog.HashSize) // an engine may keep them until the commit
	for i, e := range g.entries {
		hashes = hashes[len(hashes):]
		for _, h := range g.nodes[i] {
			hashes = append(hashes, h[:]...)
		}
		var openings any // stays NULL without openings
		if b := e.Openings(); len(b) > 0 {
			openings = b
		}
		if err := g.w.exec(ctx, insertRecord, recordID(g.head.Epoch, first+int64(i)), e.Leaf(), hashes, openings); err != nil {
			return err
		}
	}
	return nil
}

// recordID returns the key of a record: one table holds the records of all logs.
func recordID(epoch, index int64) int64 { return int64(broker.NewRecordID(epoch, index)) }
