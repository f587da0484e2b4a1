package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Retention deletes requests and leases that ended long ago, and erases texts. A walk goes
// over the rows of one table in the order of their ids, which is that of time, and remembers
// how far it came. A row that it passes and that is not over yet (a long grant, an open
// review) goes to the table prune_later, and every later pass looks at it again. So a pass
// reads each row once, however many are kept.
//
// A step deletes a bounded number of rows, in a group of its own, with one record that states
// what it deleted. Between two steps the walk pauses for longer than a step takes, so that
// issuing goes first.
//
// A step reads its rows in a View, decides there, and deletes only rows that the group finds
// unchanged.

// retentionTables are the positions of the walks, and the rows that they left for later.
const retentionTables = `
CREATE TABLE prune_positions (what TEXT NOT NULL PRIMARY KEY, position BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE prune_later (what TEXT NOT NULL, id BLOB NOT NULL, PRIMARY KEY (what, id)) WITHOUT ROWID;
`

const (
	pruneEvery = 10 * time.Minute // a pass
	pruneDuty  = "retention"

	// The number of rows of a step doubles while a step takes less than fastStep, and is halved
	// when one takes longer than slowStep.
	leastStep = 16
	mostStep  = 512
	fastStep  = 15 * time.Millisecond
	slowStep  = 50 * time.Millisecond

	leastPause = 10 * time.Millisecond // after a step
)

// A Pruner deletes what the operator no longer keeps. Only one goroutine uses it.
type Pruner struct {
	s       *Store
	keep    broker.Retention
	observe func(what string, rows int64)
	duty    broker.Hold // one process prunes at a time
	size    int         // rows of the next step
}

// NewPruner returns a pruner. It calls observe, if not nil, after each step.
func (s *Store) NewPruner(keep broker.Retention, observe func(what string, rows int64)) *Pruner {
	if observe == nil {
		observe = func(string, int64) {}
	}
	return &Pruner{s: s, keep: keep, observe: observe, duty: broker.Alone.Hold(context.Background()), size: leastStep}
}

// Run prunes every ten minutes until ctx ends.
func (p *Pruner) Run(ctx context.Context) error {
	if !p.keep.Prunes() {
		return nil
	}
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		p.duty = DutiesOf(p.s).Hold(ctx, pruneDuty)
		_, err := p.Prune(p.duty.Context(), time.Now())
		lost := p.duty.Context().Err() != nil // another process continues
		p.duty.End()
		if err != nil && !lost {
			p.s.cfg.Log.LogAttrs(ctx, slog.LevelError, "pruning what is no longer kept", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Prune makes one pass, and returns how many requests and leases it deleted, and of how many
// records it erased the texts.
func (p *Pruner) Prune(ctx context.Context, now time.Time) (pruned map[string]int64, err error) {
	pruned = map[string]int64{}
	// Texts first: the row of a request shows when its texts may be erased.
	for _, w := range []*walk{p.texts(now), p.leases(now), p.requests(now)} {
		if w == nil {
			continue
		}
		n, err := p.walk(ctx, w)
		if pruned[w.what] = n; err != nil {
			return pruned, fmt.Errorf("pruning %s: %w", w.what, err)
		}
	}
	return pruned, nil
}

// A walk is one pass over the rows of one kind.
type walk struct {
	what   string // one of the audit.Pruned constants
	before time.Time
	now    time.Time
	idSize int

	// list reads up to n rows with ids after one, those that may have ended by their ids.
	list func(v *viewTx, after []byte, n int) ([]*prunable, error)
	// read reads rows by their ids.
	read func(v *viewTx, ids [][]byte) ([]*prunable, error)
	// judge sets what happens to the rows.
	judge func(v *viewTx, rows []*prunable) error
	// prune adds the statements that delete rows which the group found unchanged.
	prune func(tx *updateTx, rows []*prunable) error
}

// A prunable is a row that a walk considers.
type prunable struct {
	id    []byte
	key   broker.Key // of a request or a lease
	body  []byte
	lease []byte // that a request carries
	began time.Time
	fate  fate

	erase []broker.Key // of a record: the rows that have its texts, too
}

// A fate is what happens to a row that a walk considers.
type fate uint8

const (
	keepForLater fate = iota // it is looked at again in the next pass
	deleteNow
	leaveAlone // there is nothing to delete
)

// walk looks at what earlier passes left for later, and then at the rows after the position.
func (p *Pruner) walk(ctx context.Context, w *walk) (total int64, err error) {
	for after := make([]byte, 0, w.idSize); ; {
		n, last, more, err := p.step(ctx, w, after, true)
		if total += n; err != nil || !more {
			if err != nil {
				return total, err
			}
			break
		}
		after = last
	}
	for {
		n, _, more, err := p.step(ctx, w, nil, false)
		if total += n; err != nil || !more {
			return total, err
		}
	}
}

// step prunes some rows: of those left for later, or of those after the position. more
// reports whether there may be others after the last one.
func (p *Pruner) step(ctx context.Context, w *walk, after []byte, later bool) (n int64, last []byte, more bool, err error) {
	if !p.duty.Has(pruneDuty) {
		return 0, nil, false, nil
	}
	var rows []*prunable
	var position []byte
	limit := p.size
	err = p.s.View(ctx, func(tx broker.Tx) (err error) {
		v := tx.(*viewTx)
		if position, err = v.prunedTo(w); err != nil {
			return err
		}
		if rows, err = w.rows(v, after, position, limit, later); err == nil {
			err = w.judge(v, rows)
		}
		return err
	})
	if err != nil || len(rows) == 0 {
		return 0, nil, false, err
	}
	last, more = rows[len(rows)-1].id, len(rows) >= limit
	if later && !slices.ContainsFunc(rows, func(r *prunable) bool { return r.fate != keepForLater }) {
		return 0, last, more, p.pause(ctx, 0)
	}
	start := time.Now()
	if n, err = p.write(ctx, w, rows, position, later); err != nil {
		return n, last, false, err
	}
	took := time.Since(start)
	p.adapt(took)
	if n > 0 {
		p.observe(w.what, n)
	}
	return n, last, more, p.pause(ctx, took)
}

func (p *Pruner) adapt(took time.Duration) {
	switch {
	case took < fastStep:
		p.size = min(2*p.size, mostStep)
	case took > slowStep:
		p.size = max(p.size/2, leastStep)
	}
}

// pause lets other writers go first, for twice as long as the step took.
func (p *Pruner) pause(ctx context.Context, took time.Duration) error {
	select {
	case <-ctx.Done():
		return unavailable("pruning", context.Cause(ctx))
	case <-time.After(max(leastPause, 2*took)):
		return nil
	}
}

// prunedTo returns the position of a walk; empty: at the start.
func (v *viewTx) prunedTo(w *walk) (position []byte, err error) {
	err = v.tx.QueryRowContext(v.ctx, "SELECT position FROM prune_positions WHERE what = ?", w.what).Scan(&position)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, unavailable("reading what was pruned", err)
	}
	if position == nil {
		position = []byte{}
	}
	return position, nil
}

// rows reads the rows of a step. A row that is gone has no body, and is left alone.
func (w *walk) rows(v *viewTx, after, position []byte, limit int, later bool) ([]*prunable, error) {
	if !later {
		return w.list(v, position, limit)
	}
	var ids [][]byte
	err := each(v.ctx, v.tx, "SELECT id FROM prune_later WHERE what = ? AND id > ? ORDER BY id LIMIT ?", []any{w.what, after, limit}, func(rows *sql.Rows) error {
		var id []byte
		err := rows.Scan(&id)
		ids = append(ids, id)
		return err
	})
	if err != nil {
		return nil, unavailable("reading what was left for later", err)
	}
	found, err := w.read(v, ids)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*prunable, len(found))
	for _, r := range found {
		byID[string(r.id)] = r
	}
	list := make([]*prunable, len(ids))
	for i, id := range ids {
		if list[i] = byID[string(id)]; list[i] == nil {
			list[i] = &prunable{id: id, fate: leaveAlone}
		}
	}
	return list, nil
}

// write prunes the rows of a step in one group.
func (p *Pruner) write(ctx context.Context, w *walk, rows []*prunable, position []byte, later bool) (n int64, err error) {
	var reads []broker.Key
	for _, r := range rows {
		if r.fate == deleteNow {
			reads = append(append(reads, r.erase...), r.keys()...)
		}
	}
	err = p.s.Update(ctx, reads, func(t broker.Tx) error {
		tx := t.(*updateTx)
		var gone []*prunable
		var left, done []any
		for _, r := range rows {
			switch {
			case r.fate == deleteNow && tx.isUnchanged(r):
				gone, done = append(gone, r), append(done, r.id)
			case r.fate == leaveAlone:
				done = append(done, r.id)
			default:
				left = append(left, r.id)
			}
		}
		if n = int64(len(gone)); n > 0 {
			if err := w.prune(tx, gone); err != nil {
				return err
			}
			if err := tx.appendPruned(w, gone); err != nil {
				return err
			}
		}
		if later {
			tx.execIn("DELETE FROM prune_later WHERE what = ? AND id IN ", done, w.what)
			return nil
		}
		for _, id := range left {
			tx.exec("INSERT INTO prune_later (what, id) VALUES (?, ?) ON CONFLICT (what, id) DO NOTHING", w.what, id)
		}
		tx.exec("INSERT INTO prune_positions (what, position) VALUES (?, ?) ON CONFLICT (what) DO UPDATE SET position = excluded.position", w.what, rows[len(rows)-1].id)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// keys returns the row's key; none: it is a record, which never changes.
func (r *prunable) keys() []broker.Key {
	if r.key == nil {
		return nil
	}
	return []broker.Key{r.key}
}

// isUnchanged reports whether a row is as it was when its fate was decided.
func (tx *updateTx) isUnchanged(r *prunable) bool {
	switch key := r.key.(type) {
	case broker.RequestID:
		return bytes.Equal(tx.g.body(key), r.body) && bytes.Equal(tx.g.carried[broker.LeaseID(key)].lease, r.lease)
	case broker.LeaseID:
		return bytes.Equal(tx.g.body(key), r.body)
	}
	return true
}

// appendPruned appends the record of a step.
func (tx *updateTx) appendPruned(w *walk, gone []*prunable) error {
	facts := &audit.PrunedFacts{What: w.what, Rows: int64(len(gone)), Before: audit.Millis(w.before)}
	for _, r := range gone {
		// After the clock was set back, a row may seem to begin after it ended.
		began := r.began
		if last := facts.Before.Add(-time.Millisecond); began.After(last) {
			began = last
		}
		if facts.From.IsZero() || began.Before(facts.From) {
			facts.From = audit.Millis(began)
		}
		if began.After(facts.Until) {
			facts.Until = audit.Millis(began)
		}
	}
	entry, err := audit.Record{Kind: audit.RetentionPruned, Pruned: facts}.Entry()
	if err == nil {
		tx.Append(entry)
	}
	return err
}

// exec adds a statement, which runs after the rows of the group are written.
func (tx *updateTx) exec(query string, args ...any) {
	tx.execs = append(tx.execs, deferred{query, args})
}

// execIn adds a statement that ends with a list of values. Lists have few lengths, so that
// each statement is prepared once; NULL equals no value.
func (tx *updateTx) execIn(query string, list []any, args ...any) {
	for len(list) > 0 {
		n := inSize(len(list))
		part := list[:min(n, len(list))]
		list = list[len(part):]
		all := append(slices.Clone(args), part...)
		tx.exec(query+marks(n), append(all, make([]any, n-len(part))...)...)
	}
}

// inSize returns the length of a list in a statement for n values.
func inSize(n int) int {
	i, _ := slices.BinarySearch(fetchSizes, n)
	return fetchSizes[min(i, len(fetchSizes)-1)]
}

// marks returns a list of n parameters.
func marks(n int) string { return "(" + strings.TrimSuffix(strings.Repeat("?, ", n), ", ") + ")" }

// A deferred is a statement of a member.
type deferred struct {
	query string
	args  []any
}

// idAt returns an id that is above those made before t, and below those made later.
func idAt(t time.Time) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(max(t.UnixMilli(), 0))<<16)
}
