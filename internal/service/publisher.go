package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/server"
	"accessbroker.internal/store"
)

// A publisher signs a checkpoint of the log about once a second. It implements
// server.LogReader with the store's records. Each checkpoint is also written to a
// file outside the database, which reveals a database that was restored from an old
// copy.
type publisher struct {
	logStore
	signer    *audit.Signer
	public    string
	file      string
	published atomic.Int64 // size of the log at the last checkpoint
	log       *slog.Logger
}

// logStore is the part of the store that the publisher uses.
type logStore interface {
	server.LogReader
	token.KeyStore
	Log(ctx context.Context) (store.Log, error)
	OpenLog(ctx context.Context, origin, public string, key *broker.SigningKey, first *audit.Entry) error
	Head() store.Head
	Hashes(ctx context.Context) audit.Rows
	SaveCheckpoint(ctx context.Context, size int64, signed []byte) error
}

const (
	logPurpose   = "log"
	publishEvery = time.Second
)

// openPublisher opens the store's log. At the first start, it creates the log and
// its key.
func openPublisher(ctx context.Context, s logStore, sealer *broker.Sealer, c *config.Config, log *slog.Logger) (*publisher, error) {
	if _, err := s.Log(ctx); errors.Is(err, broker.ErrNotFound) {
		if err := createLog(ctx, s, sealer, logHome(c)); err != nil {
			return nil, err
		}
	}
	known, err := s.Log(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	secret, err := logKey(ctx, s, sealer, known.Origin)
	if err != nil {
		return nil, err
	}
	signer, err := audit.NewSigner(secret)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	p := &publisher{logStore: s, signer: signer, public: known.Public, file: c.CheckpointFile, log: log}
	if err := p.checkRollback(ctx); err != nil {
		return nil, err
	}
	return p, p.publish(ctx)
}

// logHome is the part of a log's origin that names the broker.
func logHome(c *config.Config) string { return c.ExternalURL.Host + c.ExternalURL.Path }

func createLog(ctx context.Context, s logStore, sealer *broker.Sealer, home string) error {
	l, err := newLog(sealer, home, "")
	if err != nil {
		return err
	}
	if err := s.OpenLog(ctx, l.origin, l.public, l.key, l.first); err != nil && !errors.Is(err, store.ErrLogOpen) {
		return fmt.Errorf("creating the log: %w", err)
	}
	return nil
}

func logKey(ctx context.Context, s token.KeyStore, sealer *broker.Sealer, origin string) (string, error) {
	keys, err := s.SigningKeys(ctx, logPurpose)
	if err != nil {
		return "", fmt.Errorf("reading the log's key: %w", err)
	}
	for _, k := range keys {
		if k.ID.ID == origin {
			secret, err := sealer.Open(logPurpose, origin, k.Sealed)
			return string(secret), err
		}
	}
	return "", fmt.Errorf("the key of the log %s is not in the database", origin)
}

// checkRollback refuses a log that is behind the checkpoint in the file, or is
// another log.
func (p *publisher) checkRollback(ctx context.Context) error {
	note, err := audit.ReadCheckpointFile(p.file)
	if err != nil {
		return fmt.Errorf("reading the checkpoint file %s: %w", p.file, err)
	}
	if note == nil {
		saved, err := p.Checkpoint(ctx)
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return fmt.Errorf("reading the saved checkpoint: %w", err)
		}
		if saved != nil {
			return fmt.Errorf("the log has been published, but %s is missing: restore the file; if that is impossible, see broker audit new-epoch --help: %w", p.file, audit.ErrRollback)
		}
		return nil
	}
	if err := audit.CheckContinuation(note, p.public, p.Head().Size, p.Hashes(ctx)); err != nil {
		return fmt.Errorf("%s: %w", p.file, err)
	}
	return nil
}

// publish signs a checkpoint over all records of the log.
func (p *publisher) publish(ctx context.Context) error {
	head := p.Head()
	if head.Size == p.published.Load() {
		return nil
	}
	note, err := p.signer.Sign(audit.Checkpoint{Origin: p.signer.Origin(), Size: head.Size, Root: head.Root})
	if err != nil {
		return fmt.Errorf("signing a checkpoint: %w", err)
	}
	// The file comes first. A crash after it leaves a file that is ahead of the
	// saved checkpoint, which is fine. The other order could leave a database with
	// a checkpoint and no file, which looks like a database that was replaced.
	if err := audit.WriteCheckpointFile(p.file, note); err != nil {
		return err
	}
	if err := p.SaveCheckpoint(ctx, head.Size, note); err != nil {
		return fmt.Errorf("saving a checkpoint: %w", err)
	}
	p.published.Store(head.Size)
	return nil
}

// unpublished returns the number of records that no checkpoint covers yet.
func (p *publisher) unpublished() float64 { return float64(p.Head().Size - p.published.Load()) }

// Run publishes until ctx ends, and once more then.
func (p *publisher) Run(ctx context.Context) error {
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return p.publish(context.WithoutCancel(ctx))
		case <-tick.C:
			if err := p.publish(ctx); err != nil && ctx.Err() == nil {
				p.log.ErrorContext(ctx, "publishing the log", "err", err)
			}
		}
	}
}

// reseal seals the log's key with the sealer's first key. It reports whether the
// key was sealed with another one before.
func (p *publisher) reseal(ctx context.Context, sealer *broker.Sealer) (bool, error) {
	return token.Reseal(ctx, p, sealer, broker.SigningKeyID{Purpose: logPurpose, ID: p.signer.Origin()})
}
