package store

import (
	"context"
	"database/sql"
	"time"
)

// The table replicas shows operators which processes share the database, and whether they
// agree. Each process writes its own row every few seconds. Nothing is decided by the rows:
// see duties.go for what one process does at a time.

// replicaTables is the table of the processes. Only PostgreSQL has it. Times are those of the
// database's clock.
const replicaTables = `
CREATE TABLE replicas (name TEXT NOT NULL PRIMARY KEY, started INTEGER NOT NULL, seen INTEGER NOT NULL, build TEXT NOT NULL,
	version INTEGER NOT NULL, revision TEXT NOT NULL, config TEXT NOT NULL, clock INTEGER NOT NULL, not_ready TEXT NOT NULL) WITHOUT ROWID;
`

const (
	// ReplicaEvery is how often a replica announces itself.
	ReplicaEvery = 2 * time.Second

	// replicaGone is when a replica that does not announce itself counts as gone, and
	// replicaKept when its row is deleted.
	replicaGone = 5 * ReplicaEvery
	replicaKept = time.Hour

	replicaTimeout = 2 * time.Second // of one statement
)

// A Replica is one of the processes that share a database.
type Replica struct {
	Name     string
	Started  time.Time
	Seen     time.Time // when it announced itself last, by the database's clock
	Ago      time.Duration
	Build    string
	Schema   int           // the newest version that the program knows
	Revision string        // of the rules by which it decides
	Config   string        // digest of its configuration
	Clock    time.Duration // by how much its clock is ahead of the database's
	NotReady string        // why it is not ready; empty: it is
}

// Gone reports whether the replica has not announced itself for a while: it was ended, or
// can't reach the database.
func (r *Replica) Gone() bool { return r.Ago > replicaGone }

// databaseMillis is the database's clock in milliseconds since 1970.
const databaseMillis = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"

const announceReplica = `INSERT INTO replicas AS r (name, started, seen, build, version, revision, config, clock, not_ready)
	VALUES ($1, ` + databaseMillis + `, ` + databaseMillis + `, $2, $3, $4, $5, $6, $7)
	ON CONFLICT (name) DO UPDATE SET seen = excluded.seen, build = excluded.build, version = excluded.version, revision = excluded.revision,
		config = excluded.config, clock = excluded.clock, not_ready = excluded.not_ready`

// Replicas are the processes that share the database of a Store. It is safe for concurrent
// use.
type Replicas struct{ s *Store }

// ReplicasOf returns the processes that share the database of a Store.
func ReplicasOf(s *Store) Replicas { return Replicas{s} }

// Announce writes the row of a replica: its name, build, revision, configuration and
// readiness. It does nothing for a database of one process. It takes no part in groups, so
// a replica shows itself while it can't write.
func (p Replicas) Announce(ctx context.Context, r Replica) error {
	s := p.s
	if !s.Shared() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	_, err := s.claims.db.ExecContext(ctx, announceReplica, r.Name, r.Build, len(migrations), r.Revision, r.Config, s.ClockOffset().Milliseconds(), r.NotReady)
	if err != nil {
		return unavailable("announcing this replica", err)
	}
	return nil
}

// Leave deletes the row of a replica that ends, and those of replicas that are gone for long.
func (p Replicas) Leave(ctx context.Context, name string) error {
	s := p.s
	if !s.Shared() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), replicaTimeout)
	defer cancel()
	if _, err := s.claims.db.ExecContext(ctx, "DELETE FROM replicas WHERE name = $1 OR seen < "+databaseMillis+" - $2", name, replicaKept.Milliseconds()); err != nil {
		return unavailable("leaving the replicas", err)
	}
	return nil
}

// List returns the processes, sorted by name; none if there can be only one.
func (p Replicas) List(ctx context.Context) (list []Replica, err error) {
	s := p.s
	if !s.Shared() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	const query = "SELECT name, started, seen, " + databaseMillis + " - seen, build, version, revision, config, clock, not_ready FROM replicas ORDER BY name"
	err = each(ctx, s.claims.db, query, nil, func(rows *sql.Rows) error {
		var r Replica
		var started, seen, ago, clock int64
		if err := rows.Scan(&r.Name, &started, &seen, &ago, &r.Build, &r.Schema, &r.Revision, &r.Config, &clock, &r.NotReady); err != nil {
			return err
		}
		r.Started, r.Seen, r.Ago, r.Clock = time.UnixMilli(started), time.UnixMilli(seen), time.Duration(ago)*time.Millisecond, time.Duration(clock)*time.Millisecond
		if r.Ago <= replicaKept {
			list = append(list, r)
		}
		return nil
	})
	if err != nil {
		return nil, unavailable("reading the replicas", err)
	}
	return list, nil
}

// Follow makes memory contain every commit that was durable before the call, whichever
// process made it. Config.Changed has been called for all of them when Follow returns.
func (p Replicas) Follow(ctx context.Context) error { return p.s.fresh(ctx) }
