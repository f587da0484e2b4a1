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

// NewEpoch opens a new log in the database of a broker whose log is behind its
// checkpoint file, or whose checkpoint file is lost. The first record of the new
// log names the last known checkpoint. The broker must not run. NewEpoch returns
// the origin of the new log.
func NewEpoch(ctx context.Context, c *config.Config) (origin string, err error) {
	sealer, err := broker.NewSealer(c.SealKeys...)
	if err != nil {
		return "", err
	}
	db, err := store.Open(ctx, store.Config{URL: c.Store, Existing: true})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	previous, err := lastCheckpoint(ctx, db, c.CheckpointFile)
	if err != nil {
		return "", err
	}
	l, err := newLog(sealer, logHome(c), string(previous))
	if err != nil {
		return "", err
	}
	if err := db.NewEpoch(ctx, l.origin, l.public, l.key, l.first); err != nil {
		return "", fmt.Errorf("opening a new log: %w", err)
	}
	// The old checkpoint is in the new log's first record. From now on, the file is
	// for the checkpoints of the new log.
	if err := os.Rename(c.CheckpointFile, c.CheckpointFile+"."+time.Now().UTC().Format("20060102T150405Z")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("setting the old checkpoint file aside: %w", err)
	}
	return l.origin, nil
}

// lastCheckpoint returns the checkpoint that a new log has to name. It refuses if
// the log needs no successor.
func lastCheckpoint(ctx context.Context, db *store.Store, file string) ([]byte, error) {
	note, err := audit.ReadCheckpointFile(file)
	if err != nil {
		return nil, err
	}
	known, err := db.Log(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the log that the new one follows: %w", err)
	}
	if note == nil {
		// The file is lost. The database has the best checkpoint that is left.
		note, err = db.Checkpoint(ctx)
		if errors.Is(err, broker.ErrNotFound) {
			return nil, errors.New("no checkpoint was ever published: this log needs no new epoch")
		}
		return note, err
	}
	switch err := audit.CheckContinuation(note, known.Public, db.Head().Size, db.Hashes(ctx)); {
	case err == nil:
		return nil, errors.New("the log is not behind its checkpoint file: it needs no new epoch")
	case errors.Is(err, audit.ErrRollback):
		return note, nil
	default:
		return nil, err
	}
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
