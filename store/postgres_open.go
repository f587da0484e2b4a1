package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// openShared opens a database of PostgreSQL.
func (s *Store) openShared(ctx context.Context) error {
	url, err := parsePostgresURL(s.cfg.URL)
	if err != nil {
		return err
	}
	// The settings are read again for each connection, with new passwords and certificates.
	settings := func() (*pgx.ConnConfig, error) { return parsePostgres(s.cfg.URL) }
	if err := s.prepareShared(ctx, postgresConfig{settings: settings}); err != nil {
		return err
	}
	process := make([]byte, 16)
	_, _ = rand.Read(process) // never fails
	// A process that stops in the middle of a group must not keep the others from theirs.
	writing := postgresLimits{statement: 30 * time.Second, lock: 10 * time.Second, idle: groupIdles}
	e := &postgresEngine{cfg: postgresConfig{settings: settings, limits: writing}, process: hex.EncodeToString(process), troubled: s.troubled}
	s.w = newWriter(e, url.String())
	s.openClaims(settings, e.process)
	reading := postgresConfig{settings: settings, readOnly: true}
	loading := reading // a start reads millions of rows
	loading.limits.statement = 10 * time.Minute
	s.openPool = func() (*sql.DB, error) { return openPostgres(loading), nil }
	s.readers = openPostgres(reading)
	s.feed = &feed{db: openPostgres(reading)}
	s.feed.db.SetMaxOpenConns(1)
	s.readers.SetMaxOpenConns(maxReaders)
	s.readers.SetMaxIdleConns(maxReaders)
	if err := s.prepareGets(ctx); err != nil {
		return err
	}
	// The first group reads what the writer keeps in memory.
	return s.exec(ctx, func(ctx context.Context, w *writer) error { return forgetOlderTraits(ctx, w) })
}

// groupIdles is how long the server waits for the next statement of a group. A replica that
// is stopped in the middle holds the lock on the head no longer than that.
const groupIdles = 3 * time.Second

// prepareShared checks the server, the schema and the role, and creates or migrates the
// schema if the role may.
func (s *Store) prepareShared(ctx context.Context, cfg postgresConfig) (err error) {
	db := openPostgres(cfg)
	defer func() { err = errors.Join(err, db.Close()) }()
	s.before.fresh, err = preparePostgres(ctx, db, s.cfg.Existing, s.cfg.Log)
	return err
}

// prepareGets prepares the queries for one row of each table.
func (s *Store) prepareGets(ctx context.Context) (err error) {
	for t := range s.gets {
		query := "SELECT body FROM " + tables[t].name + " WHERE id = ?"
		switch table(t) {
		case leases:
			query = selectLease
		case spent:
			continue
		}
		if s.gets[t], err = s.readers.PrepareContext(ctx, query); err != nil {
			return err
		}
	}
	return nil
}

// deleteFeed deletes the oldest rows of the feed.
var deleteFeed = fmt.Sprintf(`DELETE FROM commits WHERE seq IN (SELECT seq FROM commits
	WHERE at < CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) - %d ORDER BY seq LIMIT ?)`, feedLasts.Milliseconds())

// writerKept is how long the row of a process that no longer writes is kept. Without its row, a
// process that still looks for the outcome of its last commit would not find it.
const writerKept = 30 * 24 * time.Hour

// deleteWriters deletes rows of processes that ended.
var deleteWriters = fmt.Sprintf(`DELETE FROM writers WHERE process IN (SELECT process FROM writers
	WHERE at < CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) - %d LIMIT ?)`, writerKept.Milliseconds())
