package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/store"
)

// An Epoch is a log that follows one that lost records.
type Epoch struct {
	Origin   string           `json:"origin,omitempty"` // of the new log; empty: none was opened
	Recovery *broker.Recovery `json:"-"`
	Since    time.Time        `json:"since"`
	Opened   time.Time        `json:"opened_at,omitzero"`
	Lost     store.Lost       `json:"restored,omitzero"` // what the database has that may be out of date
}

// NewEpoch opens a new log in the database of a broker whose log is behind its
// checkpoint file, or whose checkpoint file is lost. The first record of the new
// log names the last known checkpoint, which is the newest one of the broker's checkpoint
// file and of others, those of its other replicas. The broker must not run. With dryRun, it
// changes nothing.
func NewEpoch(ctx context.Context, c *config.Config, others []string, dryRun bool) (e *Epoch, err error) {
	sealer, err := broker.NewSealer(c.SealKeys...)
	if err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, store.Config{URL: c.Store, Existing: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	previous, err := lastCheckpoint(ctx, db, append([]string{c.CheckpointFile}, others...))
	if err != nil {
		return nil, err
	}
	if err := noReplicas(ctx, db); err != nil {
		return nil, err
	}
	now := audit.Millis(time.Now())
	e = &Epoch{Since: db.Head().Time}
	if e.Lost, err = lost(ctx, db, now); err != nil || dryRun {
		return e, err
	}
	l, err := newLog(sealer, logHome(c), string(previous))
	if err != nil {
		return nil, err
	}
	r := &broker.Recovery{Since: e.Since, Opened: now, Sessions: e.Lost.Sessions}
	record := audit.Record{Kind: audit.RecoveryStarted, Recovery: &audit.RecoveryFacts{Since: r.Since, Until: r.Opened, Sessions: int64(r.Sessions)}}
	started, err := record.Entry()
	if err != nil {
		return nil, fmt.Errorf("creating the record of the recovery: %w", err)
	}
	if err := db.NewEpoch(ctx, l.origin, l.public, l.key, l.first, r, started); err != nil {
		return nil, fmt.Errorf("opening a new log: %w", err)
	}
	e.Origin, e.Opened, e.Recovery = l.origin, now, r
	return e, setAside(c.CheckpointFile, now)
}

// noReplicas refuses while another process uses the database.
func noReplicas(ctx context.Context, db *store.Store) error {
	if !db.Shared() {
		return nil // the lock of the database has refused
	}
	list, err := store.ReplicasOf(db).List(ctx)
	if err != nil {
		return err
	}
	for _, r := range list {
		if !r.Gone() {
			return fmt.Errorf("the replica %s announced itself %s ago: stop all replicas first", r.Name, broker.FormatDuration(r.Ago))
		}
	}
	return nil
}

// lost counts what the restored database has that may be out of date.
func lost(ctx context.Context, db *store.Store, now time.Time) (store.Lost, error) {
	l, err := store.NewRecoveries(db).Lost(ctx, now)
	if err != nil {
		return l, err
	}
	active, err := db.CountActive(ctx, now)
	for _, a := range active {
		l.Live += int(a.Leases)
	}
	return l, err
}

// setAside renames a checkpoint file of an earlier log. A later log's first record names its
// checkpoint, or a newer one. From now on, the file is for the checkpoints of the new log.
func setAside(file string, now time.Time) error {
	if err := os.Rename(file, file+"."+now.UTC().Format("20060102T150405Z")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("setting the old checkpoint file aside: %w", err)
	}
	return nil
}

// ErrNoNewLog means that a log needs no successor.
var ErrNoNewLog = errors.New("no new log is needed")

// lastCheckpoint returns the checkpoint that a new log has to name: the newest one in the
// files. It refuses if the log needs no successor.
func lastCheckpoint(ctx context.Context, db *store.Store, files []string) ([]byte, error) {
	known, err := db.Log(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the log that the new one follows: %w", err)
	}
	var newest []byte
	behind := false
	for i, file := range files {
		note, err := audit.ReadCheckpointFile(file)
		switch {
		case err != nil:
			return nil, err
		case note == nil && i > 0:
			return nil, fmt.Errorf("%s: there is no such checkpoint file", file)
		case note == nil:
			continue
		}
		err = audit.CheckContinuation(note, known.Public, db.Head().Size, db.Hashes(ctx))
		if err != nil && !errors.Is(err, audit.ErrRollback) {
			return nil, err
		}
		behind = behind || err != nil
		newest = newer(newest, note, known.Public)
	}
	switch {
	case behind:
		return newest, nil
	case newest != nil:
		return nil, fmt.Errorf("the log is not behind its checkpoint file: %w", ErrNoNewLog)
	}
	// The file is lost. The database has the best checkpoint that is left.
	note, err := db.Checkpoint(ctx)
	if errors.Is(err, broker.ErrNotFound) {
		return nil, fmt.Errorf("no checkpoint was ever published: %w", ErrNoNewLog)
	}
	return note, err
}

// newer returns the checkpoint that covers more records. One that the key did not sign is of
// another log, and covers what this log does not have.
func newer(a, b []byte, public string) []byte {
	if a == nil {
		return b
	}
	first, err := audit.OpenCheckpoint(a, public)
	if err != nil {
		return a
	}
	if second, err := audit.OpenCheckpoint(b, public); err == nil && second.Size <= first.Size {
		return a
	}
	return b
}

// freshLog is the input with which a store opens a log.
type freshLog struct {
	origin, public string
	key            *broker.SigningKey
	first          *audit.Entry
}

// newLog creates a log's origin, its key and its first record. The record names the
// last checkpoint of the previous log, unless previous is empty.
func newLog(sealer *broker.Sealer, home, previous string) (*freshLog, error) {
	l := &freshLog{origin: audit.NewOrigin(home)}
	secret, public, err := audit.NewLogKey(l.origin)
	if err != nil {
		return nil, err
	}
	record := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: l.origin, Previous: previous}}
	if l.first, err = record.Entry(); err != nil {
		return nil, fmt.Errorf("creating the log's first record: %w", err)
	}
	now := time.Now()
	l.public = public
	l.key = &broker.SigningKey{
		ID: broker.SigningKeyID{Purpose: logPurpose, ID: l.origin}, Algorithm: "Ed25519",
		Sealed: sealer.Seal(logPurpose, l.origin, []byte(secret)), Published: now, Signs: now,
	}
	return l, nil
}
