package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"accessbroker.internal/broker"
)

// The table duties has which process does which work, on PostgreSQL. A claim ends by the
// clock of the database, and its owner renews it. So another process takes over the work of
// one that died, hangs or has lost its connection.
//
// A claim belongs to a process and not to a host: a broker that was restarted has another
// name, and does not continue with the claims of the one that died.
//
// The processes also share the work. Each duty has a preferred process, by a hash of both
// names. It enters its name as the duty's heir, and the owner hands the duty over when it
// is between two pieces of work.

const dutyTables = `
CREATE TABLE duties (name TEXT NOT NULL PRIMARY KEY, replica TEXT NOT NULL, until TIMESTAMPTZ NOT NULL, heir TEXT NOT NULL);
`

const (
	dutyLasts   = 8 * time.Second        // of a claim that is not renewed
	dutyEvery   = time.Second            // how often claims are renewed and the claims of others read
	dutyTimeout = 2 * time.Second        // of one statement
	dutyRetry   = 100 * time.Millisecond // until the next attempt to lock
	dutyIdle    = 10 * time.Minute       // after which a duty that no loop needs is not renewed
	dutyKept    = 10 * time.Minute       // rows of claims that ended
	dutyPause   = 5 * time.Second        // between claims of loops while the database does not answer
	dutyStuck   = 5 * time.Minute        // work that shows no progress loses its duties

	// livePrefix is the start of the names of rows with which processes show that they run.
	livePrefix = "replica/"
)

var errDutyLost = errors.New("another process has taken over the work")

// claims are the duties of one process. It implements broker.Duties, and is safe for
// concurrent use.
type claims struct {
	db      *sql.DB
	replica string
	log     *slog.Logger
	lasts   time.Duration

	// unfit, if not nil, reports whether the process must leave the work to others: its
	// clock is wrong.
	unfit func() bool

	mu     sync.Mutex
	mine   map[string]*duty
	wanted map[string]time.Time // duties that loops of this process need, and when one last did
	others map[string]time.Time // claims of other processes, and until when they last
	failed time.Time            // when a statement last failed; zero: since the last failure, one did not
	barred bool                 // unfit, and another process can do the work
	closed bool
}

// A duty is a claim of this process.
type duty struct {
	until  time.Time // by the clock of this process, never later than in the database
	lapse  *time.Timer
	used   time.Time // when the work last showed progress
	holds  map[*dutyHold]bool
	locked bool // by Lock
}

func newClaims(db *sql.DB, replica string, log *slog.Logger) *claims {
	return &claims{db: db, replica: replica, log: log, lasts: dutyLasts, mine: map[string]*duty{}, wanted: map[string]time.Time{}, others: map[string]time.Time{}}
}

// openClaims prepares the claims of this process. They have connections of their own, so that
// no other work of this process delays a renewal.
func (s *Store) openClaims(settings func() (*pgx.ConnConfig, error), process string) {
	db := openPostgres(postgresConfig{settings: settings, limits: postgresLimits{statement: dutyTimeout, lock: dutyTimeout, idle: dutyTimeout}})
	db.SetMaxOpenConns(2)
	db.SetMaxIdleConns(1)
	s.claims = newClaims(db, cmp.Or(s.cfg.Replica, process), s.cfg.Log)
	s.claims.unfit = func() bool { return s.ClockOffset().Abs() >= maxClockOffset }
}

func (s *Store) closeClaims() error {
	if s.claims == nil {
		return nil
	}
	return s.claims.db.Close()
}

// Hold implements broker.Duties.
func (c *claims) Hold(ctx context.Context, names ...string) broker.Hold {
	if free := c.unclaimed(names, time.Now()); len(free) > 0 {
		if err := c.claim(ctx, free, false); err != nil && ctx.Err() == nil {
			c.log.DebugContext(ctx, "claiming background work", "err", err)
		}
	}
	return c.hold(ctx, names, time.Now())
}

// unclaimed notes that the duties are needed, and returns those that may be free.
func (c *claims) unclaimed(names []string, now time.Time) (free []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		c.wanted[name] = now
		if !c.has(name, now) && !now.Before(c.others[name]) && !c.closed && !c.barred && now.Sub(c.failed) > dutyPause {
			free = append(free, name)
		}
	}
	return free
}

// has reports whether this process has the duty. The caller holds mu.
func (c *claims) has(name string, now time.Time) bool {
	d := c.mine[name]
	return d != nil && now.Before(d.until)
}

func (c *claims) hold(ctx context.Context, names []string, now time.Time) *dutyHold {
	h := &dutyHold{claims: c, has: map[string]bool{}}
	h.ctx, h.cancel = context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if c.has(name, now) {
			d := c.mine[name]
			d.holds[h], d.used = true, now
			h.has[name] = true
		}
	}
	if len(h.has) == 0 {
		h.cancel(errDutyLost)
	}
	return h
}

// A dutyHold implements broker.Hold. claims.mu guards has.
type dutyHold struct {
	claims *claims
	ctx    context.Context
	cancel context.CancelCauseFunc
	has    map[string]bool
}

// Context implements broker.Hold.
func (h *dutyHold) Context() context.Context { return h.ctx }

// Has implements broker.Hold.
func (h *dutyHold) Has(name string) bool {
	h.claims.mu.Lock()
	defer h.claims.mu.Unlock()
	now := time.Now()
	if !h.has[name] || !h.claims.has(name, now) {
		return false
	}
	h.claims.mine[name].used = now
	return true
}

// End implements broker.Hold.
func (h *dutyHold) End() {
	h.claims.mu.Lock()
	defer h.claims.mu.Unlock()
	for name := range h.has {
		if d := h.claims.mine[name]; d != nil {
			delete(d.holds, h)
		}
	}
	clear(h.has)
	h.cancel(context.Canceled)
}

// Lock implements broker.Duties.
func (c *claims) Lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		err := c.claim(ctx, []string{name}, true)
		c.mu.Lock()
		has := c.has(name, time.Now())
		c.mu.Unlock()
		if has {
			return func() { c.unlock(ctx, name) }, nil
		}
		if err == nil {
			err = errors.New("another process has it")
		}
		select {
		case <-ctx.Done():
			return nil, unavailable("waiting for "+name, err)
		case <-time.After(dutyRetry):
		}
	}
}

func (c *claims) unlock(ctx context.Context, name string) {
	c.lose(name)
	_ = c.free(ctx, []string{name}) // it ends by itself
}

// lose forgets a duty, and ends the work on it.
func (c *claims) lose(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.mine[name]
	if d == nil {
		return
	}
	delete(c.mine, name)
	d.lapse.Stop()
	for h := range d.holds {
		if delete(h.has, name); len(h.has) == 0 {
			h.cancel(errDutyLost)
		}
	}
}

// lapse is lose for a duty that was not renewed in time.
func (c *claims) lapse(name string, d *duty) {
	c.mu.Lock()
	lapsed := c.mine[name] == d && !time.Now().Before(d.until)
	c.mu.Unlock()
	if lapsed {
		c.lose(name)
	}
}

const claimDuties = `INSERT INTO duties AS d (name, replica, until, heir)
SELECT n, $1, clock_timestamp() + CAST($2 AS BIGINT) * interval '1 millisecond', '' FROM unnest(string_to_array($3, chr(10))) AS n ORDER BY n
ON CONFLICT (name) DO UPDATE SET replica = excluded.replica, until = excluded.until, heir = CASE WHEN d.replica = excluded.replica THEN d.heir ELSE '' END
WHERE d.replica = excluded.replica
OR d.until < clock_timestamp() AND (d.heir IN ('', excluded.replica) OR d.until < clock_timestamp() - interval '2 seconds')
RETURNING name`

// claim claims the duties, or renews the claims. It is one short statement, which takes
// only the locks of these rows.
func (c *claims) claim(ctx context.Context, names []string, lock bool) error {
	begun := time.Now()
	got, err := c.claimRows(ctx, names)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed = (time.Time{}); err != nil {
		c.failed = time.Now()
		return err
	}
	for _, name := range got {
		c.own(name, begun.Add(c.lasts), lock)
	}
	for _, name := range names {
		if !slices.Contains(got, name) && !lock {
			c.others[name] = begun.Add(dutyEvery) // then the claims are read again
		}
	}
	return nil
}

func (c *claims) claimRows(ctx context.Context, names []string) (got []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	err = each(ctx, c.db, claimDuties, []any{c.replica, c.lasts.Milliseconds(), strings.Join(names, "\n")}, func(rows *sql.Rows) error {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		got = append(got, name)
		return nil
	})
	if err != nil {
		return nil, unavailable("claiming background work", err)
	}
	return got, nil
}

// own notes a claim. The caller holds mu.
func (c *claims) own(name string, until time.Time, locked bool) {
	d := c.mine[name]
	if d == nil {
		d = &duty{holds: map[*dutyHold]bool{}, used: time.Now(), locked: locked}
		d.lapse = time.AfterFunc(time.Until(until), func() { c.lapse(name, d) })
		c.mine[name] = d
	}
	if until.After(d.until) {
		d.until = until
		d.lapse.Reset(time.Until(until))
	}
	delete(c.others, name)
}

// free ends claims in the database, unless another process has them.
func (c *claims) free(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dutyTimeout)
	defer cancel()
	_, err := c.db.ExecContext(ctx, "UPDATE duties SET until = clock_timestamp() - interval '1 millisecond' WHERE replica = $1 AND name = ANY (string_to_array($2, chr(10)))", c.replica, strings.Join(names, "\n"))
	if err != nil {
		return unavailable("handing over background work", err)
	}
	return nil
}

// release ends all claims, so that other processes take over at once. There are no further
// claims.
func (c *claims) release(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	names := make([]string, 0, len(c.mine))
	for name := range c.mine {
		names = append(names, name)
	}
	c.mu.Unlock()
	for _, name := range names {
		c.lose(name)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dutyTimeout)
	defer cancel()
	if _, err := c.db.ExecContext(ctx, "DELETE FROM duties WHERE replica = $1", c.replica); err != nil {
		return unavailable("handing over background work", err)
	}
	return nil
}

// DutiesOf returns the work of this process. On SQLite, it has all.
func DutiesOf(s *Store) broker.Duties {
	if s.claims == nil {
		return broker.Alone
	}
	return s.claims
}

// HandOver ends all claims of this process, so that other processes take over its work at
// once. This process claims nothing from then on.
func HandOver(ctx context.Context, s *Store) error {
	if s.claims == nil {
		return nil
	}
	return s.claims.release(ctx)
}
