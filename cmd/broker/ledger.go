package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/token"
	"accessbroker.internal/store"
)

// A ledger is the log as the server shows it (server.LogReader): the store's records, with a
// checkpoint that is signed about once a second and remembered outside of the
// database as well, so that a database that was put back is found out.
type ledger struct {
	*store.Store
	signer    *audit.Signer
	public    string
	remember  string // file
	published atomic.Int64
	log       *slog.Logger
}

const (
	logPurpose   = "log"
	publishEvery = time.Second
)

// openLedger opens the store's log, and makes it and its key at first start.
func openLedger(ctx context.Context, s *store.Store, sealer *broker.Sealer, external *url.URL, remember string, log *slog.Logger) (*ledger, error) {
	if _, err := s.Log(ctx); errors.Is(err, broker.ErrNotFound) {
		if err := createLog(ctx, s, sealer, external.Host+external.Path); err != nil {
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
	l := &ledger{Store: s, signer: signer, public: known.Public, remember: remember, log: log}
	if err := l.checkRemembered(ctx); err != nil {
		return nil, err
	}
	return l, l.publish(ctx)
}

// createLog makes the log, once.
func createLog(ctx context.Context, s *store.Store, sealer *broker.Sealer, home string) error {
	l, err := newLog(sealer, home, "")
	if err != nil {
		return err
	}
	if err := s.OpenLog(ctx, l.origin, l.public, l.key, l.first); err != nil && !errors.Is(err, store.ErrLogOpen) {
		return fmt.Errorf("opening the log: %w", err)
	}
	return nil
}

func logKey(ctx context.Context, s *store.Store, sealer *broker.Sealer, origin string) (string, error) {
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

// checkRemembered refuses a log that is behind, or another than, what was
// remembered outside of the database.
func (l *ledger) checkRemembered(ctx context.Context) error {
	note, err := audit.ReadCheckpointFile(l.remember)
	if err != nil {
		return fmt.Errorf("reading the remembered checkpoint %s: %w", l.remember, err)
	}
	if note == nil {
		saved, err := l.Store.Checkpoint(ctx)
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return fmt.Errorf("reading the saved checkpoint: %w", err)
		}
		if saved != nil {
			return fmt.Errorf("the log has been published, and %s is gone: put it back; if that is impossible, see broker audit new-epoch --help: %w", l.remember, audit.ErrRollback)
		}
		return nil
	}
	if err := audit.CheckContinuation(note, l.public, l.Head().Size, l.Hashes(ctx)); err != nil {
		return fmt.Errorf("%s: %w", l.remember, err)
	}
	return nil
}

// publish signs a checkpoint over all that is in the log, keeps it in the
// store, and remembers it outside.
func (l *ledger) publish(ctx context.Context) error {
	head := l.Head()
	if head.Size == l.published.Load() {
		return nil
	}
	note, err := l.signer.Sign(audit.Checkpoint{Origin: l.signer.Origin(), Size: head.Size, Root: head.Root})
	if err != nil {
		return fmt.Errorf("signing a checkpoint: %w", err)
	}
	// Outside first: a database with a checkpoint, and nothing remembered, is
	// one that somebody has put there.
	if err := audit.WriteCheckpointFile(l.remember, note); err != nil {
		return fmt.Errorf("remembering a checkpoint: %w", err)
	}
	if err := l.SaveCheckpoint(ctx, head.Size, note); err != nil {
		return fmt.Errorf("saving a checkpoint: %w", err)
	}
	l.published.Store(head.Size)
	return nil
}

// unpublished is how many records no checkpoint covers yet.
func (l *ledger) unpublished() float64 { return float64(l.Head().Size - l.published.Load()) }

// Run publishes until ctx ends, and once more then.
func (l *ledger) Run(ctx context.Context) error {
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return l.publish(context.WithoutCancel(ctx))
		case <-tick.C:
			if err := l.publish(ctx); err != nil && ctx.Err() == nil {
				l.log.ErrorContext(ctx, "publishing the log", "err", err)
			}
		}
	}
}

// reseal seals the log's key with the sealer's first key.
func (l *ledger) reseal(ctx context.Context, sealer *broker.Sealer) (bool, error) {
	return token.Reseal(ctx, l.Store, sealer, broker.SigningKeyID{Purpose: logPurpose, ID: l.signer.Origin()})
}

// keepContents puts what a revision consists of beside the log, by content: the
// log holds the digests.
func keepContents(dir string, contents map[string][]byte, digests map[string]audit.Digest) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keeping the rules beside the log: %w", err)
	}
	for name, digest := range digests {
		path := dir + "/" + digest.String()
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := writeWhole(path, contents[name]); err != nil {
			return fmt.Errorf("keeping %s beside the log: %w", name, err)
		}
	}
	return nil
}

// writeWhole writes a file that is there whole or not at all, mode 0600.
func writeWhole(path string, content []byte) (err error) {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Rename(temp, path)
}
