package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"accessbroker.internal/broker"
)

// standingTables are the tables of facts. A request that rests on facts has a row in rests
// for each of their subjects while it may lead to a working credential, so that what rests
// on a fact is found by index.
const standingTables = `
CREATE TABLE standings (id BLOB NOT NULL PRIMARY KEY, body BLOB NOT NULL, due INTEGER, idle INTEGER) WITHOUT ROWID;
CREATE INDEX standings_due ON standings (due) WHERE due IS NOT NULL;
CREATE INDEX standings_idle ON standings (idle) WHERE idle IS NOT NULL;
CREATE TABLE rests (subject BLOB NOT NULL, request BLOB NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (subject, request)) WITHOUT ROWID;
CREATE INDEX rests_until ON rests (until);
`

// Every issuance reads the standings that it rests on, twice: to decide, and in its
// transaction. So the store keeps the rows of all standings in memory.

// standingSet is the copy. It is safe for concurrent use.
type standingSet struct {
	mu     sync.RWMutex
	loaded bool
	bodies map[broker.StandingKey][]byte
	looked time.Time // when idle last looked at all
}

// idleEvery is how often idle looks at all rows.
const idleEvery = 5 * time.Minute

// follow applies the standings of a group that was committed.
func (s *standingSet) follow(g *group) {
	for _, r := range g.order {
		if key, ok := r.key.(broker.StandingKey); ok {
			s.mu.Lock()
			if s.loaded {
				s.bodies[key] = slices.Clone(r.body)
			}
			s.mu.Unlock()
		}
	}
}

// forget makes the next reader load the table again: another process wrote to it.
func (s *standingSet) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded, s.bodies = false, nil
}

// get returns the body of a row; nil if there is none.
func (s *standingSet) get(key broker.StandingKey) (body []byte, loaded bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bodies[key], s.loaded
}

// loadStandings reads the table, unless it is loaded. Commits are not adopted meanwhile, so
// none is missed.
func (s *Store) loadStandings(ctx context.Context) (err error) {
	set := s.standings
	set.mu.Lock()
	defer set.mu.Unlock()
	if set.loaded {
		return nil
	}
	db := s.readers
	if s.Shared() {
		// All connections of the pool may be in the hands of callers that wait for the feed,
		// and the feed waits for the standings.
		if db, err = s.openPool(); err != nil {
			return unavailable("reading the standings", err)
		}
		defer func() { err = errors.Join(err, db.Close()) }()
	}
	bodies := map[broker.StandingKey][]byte{}
	err = each(ctx, db, "SELECT id, body FROM standings", nil, func(rows *sql.Rows) error {
		var id, body []byte
		if err := rows.Scan(&id, &body); err != nil {
			return err
		}
		key, err := standings.key(id)
		if err == nil {
			bodies[key.(broker.StandingKey)] = body
		}
		return err
	})
	if err != nil {
		return unavailable("reading the standings", err)
	}
	set.bodies, set.loaded = bodies, true
	return nil
}

// Standing implements broker.Reader.
func (s *Store) Standing(ctx context.Context, subject broker.StandingKey) (*broker.Standing, error) {
	if err := s.freshWithin(ctx, standingsLag); err != nil {
		return nil, err
	}
	body, loaded := s.standings.get(subject)
	if !loaded {
		if err := s.loadStandings(ctx); err != nil {
			return nil, err
		}
		body, _ = s.standings.get(subject)
	}
	if body == nil {
		return nil, broker.ErrNotFound
	}
	row, err := decodeRow(subject, body)
	if err != nil {
		return nil, err
	}
	return row.(*broker.Standing), nil
}

// sweepStandings deletes the rows of subjects that no source has known for a month.
func (s *Store) sweepStandings(ctx context.Context, now time.Time) (total int64, err error) {
	for {
		deleted := map[broker.StandingKey][]byte{}
		err := s.exec(ctx, func(ctx context.Context, w *writer) error {
			clear(deleted)
			query, err := w.prepared(ctx, "DELETE FROM standings WHERE id IN (SELECT id FROM standings INDEXED BY standings_idle WHERE idle <= ? LIMIT ?) RETURNING id, body")
			if err != nil {
				return err
			}
			rows, err := query.QueryContext(ctx, now.UnixMilli(), sweepBatch)
			if err != nil {
				return err
			}
			for rows.Next() {
				var id, body []byte
				if err := rows.Scan(&id, &body); err != nil {
					return errors.Join(err, rows.Close())
				}
				key, err := standingKey(id)
				if err != nil {
					return errors.Join(err, rows.Close())
				}
				deleted[key.(broker.StandingKey)] = body
			}
			return errors.Join(rows.Err(), rows.Close())
		})
		if err != nil {
			return total, err
		}
		s.standings.drop(deleted)
		if total += int64(len(deleted)); len(deleted) < sweepBatch {
			return total, nil
		}
	}
}

// drop forgets rows that were deleted, unless they were written again since.
func (s *standingSet) drop(deleted map[broker.StandingKey][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, body := range deleted {
		if bytes.Equal(s.bodies[key], body) {
			delete(s.bodies, key)
		}
	}
}

// forgetIdleStandings forgets rows that another process has deleted: see sweepStandings.
func (s *Store) forgetIdleStandings(ctx context.Context, now time.Time) error {
	gone := map[broker.StandingKey][]byte{}
	for key, body := range s.standings.idle(now) {
		var one int
		err := s.readers.QueryRowContext(ctx, "SELECT 1 FROM standings WHERE id = ?", standingID(key)).Scan(&one)
		if errors.Is(err, sql.ErrNoRows) {
			gone[key] = body
		} else if err != nil {
			return unavailable("looking for subjects of facts that are gone", err)
		}
	}
	s.standings.drop(gone)
	return nil
}

// idle returns the rows that may be deleted at now. It looks at them now and then only.
func (s *standingSet) idle(now time.Time) map[broker.StandingKey][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.looked) < idleEvery {
		return nil
	}
	s.looked = now
	list := map[broker.StandingKey][]byte{}
	for key, body := range s.bodies {
		var row broker.Standing
		if err := decodeBody(body, &row); err != nil {
			continue // a reader reports it
		}
		if idle := row.Idle(); !idle.IsZero() && !now.Before(idle) {
			list[key] = body
		}
	}
	return list
}

// standingID returns the id of a standing. Ids sort by kind and then by name.
func standingID(key broker.StandingKey) []byte { return []byte(string(key.Kind) + "\x00" + key.Name) }

func standingKey(id []byte) (broker.Key, error) {
	kind, name, ok := strings.Cut(string(id), "\x00")
	if !ok {
		return nil, errBody
	}
	return broker.StandingKey{Kind: broker.FactKind(kind), Name: name}, nil
}

// Standings implements broker.Tx.
func (v *viewTx) Standings(q broker.StandingQuery) ([]*broker.Standing, error) {
	if q.Due {
		return all[*broker.Standing](v, standings, "SELECT id, body FROM standings INDEXED BY standings_due WHERE due <= ? ORDER BY due LIMIT ?", q.Now.UnixMilli(), q.Limit)
	}
	return all[*broker.Standing](v, standings, "SELECT id, body FROM standings WHERE id > ? AND id < ? ORDER BY id LIMIT ?",
		standingID(broker.StandingKey{Kind: q.Kind, Name: q.After}), []byte(string(q.Kind)+"\x01"), q.Limit)
}

// Standings implements broker.Tx.
func (tx *updateTx) Standings(broker.StandingQuery) ([]*broker.Standing, error) {
	return nil, errListing
}

// A resting is what a request rests on, and until when it may lead to a working credential.
type resting struct {
	on    []broker.StandingKey
	until int64 // in milliseconds since 1970; 0: it cannot
}

func restingOf(r *broker.Request) resting {
	x := resting{on: r.RestsOn}
	switch r.Status {
	case broker.RequestPending:
		x.until = ceilMillis(r.Lapses)
	case broker.RequestApproved:
		x.until = ceilMillis(r.Ends())
	}
	return x
}

// writeRests writes or deletes the rows by which a request is found by what it rests on.
func (g *group) writeRests(ctx context.Context, r *row) error {
	for _, subject := range r.rests.on {
		var err error
		if id := standingID(subject); r.rests.until == 0 {
			err = g.w.exec(ctx, "DELETE FROM rests WHERE subject = ? AND request = ?", id, r.id)
		} else {
			err = g.w.exec(ctx, "INSERT INTO rests (subject, request, until) VALUES (?, ?, ?) ON CONFLICT (subject, request) DO UPDATE SET until = excluded.until", id, r.id, r.rests.until)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
