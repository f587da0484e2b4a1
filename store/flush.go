package store

import (
	"context"
	"fmt"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// flush writes the group: its rows, its records, and the head.
func (g *group) flush(ctx context.Context) error {
	for _, r := range g.order {
		if err := g.writeRow(ctx, r); err != nil {
			return fmt.Errorf("writing %s: %w", tables[r.table].name, err)
		}
	}
	if err := g.writeRecords(ctx); err != nil {
		return fmt.Errorf("writing the log: %w", err)
	}
	err := g.w.exec(ctx, "UPDATE head SET epoch = ?, size = ?, root = ?, time = ?, blocks = ?, nonce = ?",
		g.head.Epoch, g.head.Size, g.head.Root[:], g.head.Time.UnixMilli(), g.blocksVersion, g.nonce)
	if err != nil {
		return fmt.Errorf("writing the head of the log: %w", err)
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

func (g *group) writeRow(ctx context.Context, r *row) error {
	if tables[r.table].extra == "" {
		if block, ok := r.key.(broker.BlockKey); ok {
			g.newBlock(block, r.body)
		}
		return g.w.exec(ctx, upserts[r.table], r.id, r.body)
	}
	if err := g.w.exec(ctx, upserts[r.table], r.id, r.body, r.extra); err != nil {
		return err
	}
	if r.table == leases {
		return g.writeLive(ctx, r)
	}
	return nil
}

func (g *group) newBlock(key broker.BlockKey, body []byte) {
	if g.newBlocks == nil {
		g.newBlocks = map[broker.BlockKey][]byte{}
		g.blocksVersion++
	}
	g.newBlocks[key] = body
}

const (
	upsertLive = `INSERT INTO live (id, until, kind, request, holder) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
		SET until = excluded.until, kind = excluded.kind, request = excluded.request, holder = excluded.holder`
	deleteLive = "DELETE FROM live WHERE id = ?"
)

// writeLive notes that a lease lives, or that it does not.
func (g *group) writeLive(ctx context.Context, r *row) error {
	if r.live.until == 0 {
		return g.w.exec(ctx, deleteLive, r.id)
	}
	kind, err := g.kindID(ctx, r.live.kind)
	if err != nil {
		return err
	}
	return g.w.exec(ctx, upsertLive, r.id, r.live.until, kind, r.live.request[:], r.live.holder)
}

// kindID gives the number of a kind of lease, and makes one for a new kind.
func (g *group) kindID(ctx context.Context, k kind) (int64, error) {
	if id, ok := g.w.kinds[k]; ok {
		return id, nil
	}
	if id, ok := g.newKinds[k]; ok {
		return id, nil
	}
	id := int64(len(g.w.kinds) + len(g.newKinds) + 1)
	if err := g.w.exec(ctx, "INSERT INTO kinds (id, entitlement, issuer) VALUES (?, ?, ?)", id, k.entitlement, k.issuer); err != nil {
		return 0, err
	}
	if g.newKinds == nil {
		g.newKinds = map[kind]int64{}
	}
	g.newKinds[k] = id
	return id, nil
}

const insertRecord = "INSERT INTO records (id, leaf, hashes, openings) VALUES (?, ?, ?, ?)"

// writeRecords gives the entries their time, place and hashes, and writes them.
// They get one time: that of the group, never before that of the last record.
func (g *group) writeRecords(ctx context.Context) error {
	if len(g.entries) == 0 {
		return nil
	}
	if now := audit.Millis(g.w.now()); now.After(g.head.Time) {
		g.head.Time = now
	}
	g.tree = g.tree.Clone() // the writer's own stays what is committed
	g.hashes = make([]audit.Digest, len(g.entries))
	var hashes []byte
	for i, e := range g.entries {
		e.SetTime(g.head.Time)
		g.hashes[i] = e.Hash()
		id := recordID(g.head.Epoch, g.tree.Size())
		hashes = hashes[:0]
		for _, h := range g.tree.Append(g.hashes[i]) {
			hashes = append(hashes, h[:]...)
		}
		var openings any
		if b := e.Openings(); len(b) > 0 {
			openings = b
		}
		if err := g.w.exec(ctx, insertRecord, id, e.Leaf(), hashes, openings); err != nil {
			return err
		}
	}
	g.head.Size, g.head.Root = g.tree.Size(), g.tree.Root()
	return nil
}

// epochBits is how many records a log may have, as a power of two.
const epochBits = 40

// recordID is the key of a record: logs stand behind one another in one table.
func recordID(epoch, index int64) int64 { return epoch<<epochBits | index }
