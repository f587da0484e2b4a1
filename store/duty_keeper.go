package store

import (
	"cmp"
	"context"
	"database/sql"
	"hash/fnv"
	"slices"
	"strings"
	"time"
)

// A dutyRow is a row of the table duties.
type dutyRow struct {
	name, replica, heir string
	lasts               time.Duration // until the claim ends; negative: it has ended
}

// run renews the claims of this process, and takes part in sharing the work, until ctx ends.
func (c *claims) run(ctx context.Context) {
	tick := time.NewTicker(dutyEvery)
	defer tick.Stop()
	failing := false
	var cleaned time.Time
	for {
		err := c.keep(ctx, time.Now())
		if err != nil && !failing && ctx.Err() == nil {
			c.log.WarnContext(ctx, "background work can't be claimed: other replicas do it, or no one does while the database is away", "err", err)
		}
		if failing = err != nil; !failing && time.Since(cleaned) > dutyKept {
			cleaned = time.Now()
			_ = c.clean(ctx) // the next one does it
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keep makes one pass of run.
func (c *claims) keep(ctx context.Context, now time.Time) error {
	rows, err := c.rows(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	todo := c.plan(rows, now)
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return nil
	}
	for _, name := range todo.leave {
		c.lose(name)
	}
	if len(todo.leave) > 0 {
		if err := c.free(ctx, todo.leave); err != nil {
			return err
		}
	}
	if len(todo.wish) > 0 {
		if err := c.wish(ctx, todo.wish); err != nil {
			return err
		}
	}
	if len(todo.claim) == 0 {
		return nil
	}
	return c.renew(ctx, todo.claim)
}

// renew claims, and notes which claims another process took.
func (c *claims) renew(ctx context.Context, names []string) error {
	if err := c.claim(ctx, names, false); err != nil {
		return err
	}
	c.mu.Lock()
	var lost []string
	for _, name := range names {
		if _, taken := c.others[name]; taken && c.mine[name] != nil {
			lost = append(lost, name)
		}
	}
	c.mu.Unlock()
	for _, name := range lost {
		c.lose(name)
	}
	return nil
}

func (c *claims) rows(ctx context.Context) (list []dutyRow, err error) {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	err = each(ctx, c.db, "SELECT name, replica, heir, CAST(extract(epoch FROM until - clock_timestamp()) * 1000 AS BIGINT) FROM duties", nil, func(rows *sql.Rows) error {
		var r dutyRow
		var millis int64
		err := rows.Scan(&r.name, &r.replica, &r.heir, &millis)
		r.lasts = time.Duration(millis) * time.Millisecond
		list = append(list, r)
		return err
	})
	if err != nil {
		return nil, unavailable("reading who does which work", err)
	}
	return list, nil
}

// dutySteps are the changes of one pass.
type dutySteps struct {
	claim []string // to claim or to renew
	leave []string // to hand over
	wish  []string // to ask for
}

// plan notes what other processes do, and returns what this one has to change. The caller
// holds mu.
func (c *claims) plan(rows []dutyRow, now time.Time) (todo dutySteps) {
	live := []string{}
	byName := make(map[string]dutyRow, len(rows))
	clear(c.others)
	for _, r := range rows {
		byName[r.name] = r
		if r.lasts > 0 && r.replica != c.replica {
			c.others[r.name] = now.Add(r.lasts)
			if strings.HasPrefix(r.name, livePrefix) {
				live = append(live, r.replica)
			}
		}
	}
	if c.barred = c.unfit != nil && c.unfit() && len(live) > 0; c.barred {
		for name := range c.mine {
			todo.leave = append(todo.leave, name)
		}
		return todo
	}
	todo.claim = append(todo.claim, livePrefix+c.replica)
	for name, d := range c.mine {
		r := byName[name]
		switch {
		case len(d.holds) > 0 || d.locked:
			if now.Sub(d.used) < dutyStuck {
				todo.claim = append(todo.claim, name)
			}
		case r.heir != "" && r.heir != c.replica && slices.Contains(live, r.heir):
			todo.leave = append(todo.leave, name)
		case now.Sub(d.used) < dutyIdle:
			todo.claim = append(todo.claim, name)
		}
	}
	for name, at := range c.wanted {
		if now.Sub(at) >= dutyIdle {
			delete(c.wanted, name)
			continue
		}
		if c.mine[name] != nil || preferred(name, c.replica, live) != c.replica {
			continue
		}
		r, known := byName[name]
		switch {
		case !known || r.lasts <= 0:
			todo.claim = append(todo.claim, name)
		case r.heir != c.replica:
			todo.wish = append(todo.wish, name)
		}
	}
	todo.claim = slices.Compact(slices.Sorted(slices.Values(todo.claim)))
	return todo
}

// preferred returns the process that should have a duty: the one with the highest hash of
// both names (rendezvous hashing), so that few duties move when a process comes or goes.
func preferred(name, me string, others []string) string {
	return slices.MaxFunc(append([]string{me}, others...), func(a, b string) int {
		return cmp.Or(cmp.Compare(dutyHash(name, a), dutyHash(name, b)), cmp.Compare(a, b))
	})
}

func dutyHash(name, replica string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(replica + "\n" + name)) // a hash does not fail
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9 // the finalizer of SplitMix64: FNV spreads the last bytes little
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// wish enters this process as the heir of duties.
func (c *claims) wish(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	_, err := c.db.ExecContext(ctx, "UPDATE duties SET heir = $1 WHERE replica <> $1 AND name = ANY (string_to_array($2, chr(10)))", c.replica, strings.Join(names, "\n"))
	if err != nil {
		return unavailable("asking for background work", err)
	}
	return nil
}

// clean deletes the rows of claims that ended long ago, as of processes that died.
func (c *claims) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	_, err := c.db.ExecContext(ctx, "DELETE FROM duties WHERE until < clock_timestamp() - CAST($1 AS BIGINT) * interval '1 millisecond'", dutyKept.Milliseconds())
	return err
}
