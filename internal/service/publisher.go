package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
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
//
// If several replicas share the log, one signs at a time, and each has a file of its own. The
// others write to their files what that one published, once they have proved that the log
// contains the checkpoint in their file.
type publisher struct {
	logStore
	signer    *audit.Signer
	public    string
	file      string
	published atomic.Int64 // size of the log at the last checkpoint
	duties    broker.Duties
	sync      func(context.Context) error // see store.Sync
	refuse    func()                      // called when the log does not continue the checkpoint file
	log       *slog.Logger

	mu   sync.Mutex // held while the file is written
	last []byte     // the checkpoint in the file; nil: none
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
	Shared() bool
}

const (
	logPurpose   = "log"
	publishEvery = time.Second
)

// openPublisher opens the store's log. At the first start, it creates the log and
// its key.
func openPublisher(ctx context.Context, s logStore, sealer *broker.Sealer, c *config.Config, log *slog.Logger) (*publisher, error) {
	if _, err := s.Log(ctx); errors.Is(err, broker.ErrNotFound) {
		if err := checkNoEarlierLog(s, c.CheckpointFile); err != nil {
			return nil, err
		}
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
	p := &publisher{logStore: s, signer: signer, public: known.Public, file: c.CheckpointFile, duties: broker.Alone, refuse: func() {}, log: log}
	p.sync = func(context.Context) error { return nil }
	if err := p.checkRollback(ctx); err != nil {
		return nil, err
	}
	return p, p.publish(ctx)
}

// share makes the publisher take turns with those of other replicas.
func (p *publisher) share(s *store.Store) {
	p.duties, p.refuse = store.DutiesOf(s), func() { store.Refuse(s) }
	p.sync = func(ctx context.Context) error { return store.Sync(ctx, s) }
}

// logHome is the part of a log's origin that names the broker.
func logHome(c *config.Config) string { return c.ExternalURL.Host + c.ExternalURL.Path }

// checkNoEarlierLog refuses to create a log in a database of PostgreSQL if this replica
// knows a log: the log could not be removed again.
func checkNoEarlierLog(s logStore, file string) error {
	if !s.Shared() {
		return nil
	}
	note, err := audit.ReadCheckpointFile(file)
	if err != nil || note == nil {
		return err
	}
	origin, _, _ := strings.Cut(string(note), "\n")
	return fmt.Errorf("the database has no log, and the checkpoint file %s is of the log %s: correct the store if it names another database, restore the database if it is lost, or remove the file for a new broker: %w", file, origin, audit.ErrRollback)
}

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
		if saved != nil && p.Shared() {
			p.log.WarnContext(ctx, "this replica has no checkpoint file yet: it takes the log of the database as it is, and notices from now on if records are lost", "file", p.file)
			return nil
		}
		if saved != nil {
			return fmt.Errorf("the log has been published, but %s is missing: restore the file; if that is impossible, see broker audit new-epoch --help: %w", p.file, audit.ErrRollback)
		}
		return nil
	}
	err = audit.CheckContinuation(note, p.public, p.Head().Size, p.Hashes(ctx))
	if errors.Is(err, audit.ErrRollback) && p.supersedes(ctx, note) {
		p.log.WarnContext(ctx, "the checkpoint file is of the log that this one follows since the database was restored: it is set aside", "file", p.file)
		return setAside(p.file, time.Now())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.file, err)
	}
	p.last = note
	return nil
}

// supersedes reports whether the first record of the log names a checkpoint that covers this one: the
// log was opened with the checkpoint file of another replica.
func (p *publisher) supersedes(ctx context.Context, note []byte) bool {
	item, err := p.Record(ctx, 0)
	if err != nil {
		return false
	}
	first, err := audit.Decode(item.Leaf)
	return err == nil && first.Log != nil && audit.Covered(note, []byte(first.Log.Previous))
}

// publish signs a checkpoint over all records of the log. The log's records are compared with
// the checkpoint in the file before, if other replicas write to the log.
func (p *publisher) publish(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.sync(ctx); err != nil {
		return err
	}
	head := p.Head()
	if head.Size == p.published.Load() {
		return nil
	}
	if p.Shared() {
		if err := p.checkContinuation(ctx); err != nil {
			return err
		}
	}
	note, err := p.signer.Sign(audit.Checkpoint{Origin: p.signer.Origin(), Size: head.Size, Root: head.Root})
	if err != nil {
		return fmt.Errorf("signing a checkpoint: %w", err)
	}
	// The file comes first. A crash after it leaves a file that is ahead of the
	// saved checkpoint, which is fine. The other order could leave a database with
	// a checkpoint and no file, which looks like a database that was replaced.
	if err := p.write(note); err != nil {
		return err
	}
	if err := p.SaveCheckpoint(ctx, head.Size, note); err != nil {
		if errors.Is(err, store.ErrCheckpoint) {
			p.refuse()
		}
		return fmt.Errorf("saving a checkpoint: %w", err)
	}
	p.published.Store(head.Size)
	return nil
}

func (p *publisher) write(note []byte) error {
	if bytes.Equal(note, p.last) {
		return nil
	}
	if err := audit.WriteCheckpointFile(p.file, note); err != nil {
		return err
	}
	p.last = note
	return nil
}

// checkContinuation checks that the log continues the checkpoint in the file. If it does not,
// this replica refuses everything.
func (p *publisher) checkContinuation(ctx context.Context) error {
	err := audit.CheckContinuation(p.last, p.public, p.Head().Size, p.Hashes(ctx))
	if errors.Is(err, audit.ErrRollback) {
		p.refuse()
	}
	return err
}

// follow writes the newest checkpoint, which another replica published, to the file, if the
// log contains it and it continues the one in the file.
func (p *publisher) follow(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	saved, err := p.Checkpoint(ctx)
	if errors.Is(err, broker.ErrNotFound) || bytes.Equal(saved, p.last) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(p.sync(ctx), p.checkContinuation(ctx)); err != nil {
		return err
	}
	if err := audit.CheckContinuation(saved, p.public, p.Head().Size, p.Hashes(ctx)); err != nil {
		return fmt.Errorf("the checkpoint that another replica published: %w", err)
	}
	c, err := audit.OpenCheckpoint(saved, p.public)
	if err != nil || c.Size <= p.published.Load() {
		return err // the file is ahead already
	}
	if err := p.write(saved); err != nil {
		return err
	}
	p.published.Store(c.Size)
	return nil
}

// unpublished returns the number of records that no checkpoint covers yet.
func (p *publisher) unpublished() float64 { return float64(p.Head().Size - p.published.Load()) }

// checkpointDuty is the signing of checkpoints.
const checkpointDuty = "checkpoints"

// Run publishes until ctx ends, and once more then.
func (p *publisher) Run(ctx context.Context) error {
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return p.step(context.WithoutCancel(ctx))
		case <-tick.C:
			if err := p.step(ctx); err != nil && ctx.Err() == nil {
				p.log.ErrorContext(ctx, "publishing the log", "err", err)
			}
		}
	}
}

// step publishes, or follows the replica that does.
func (p *publisher) step(ctx context.Context) error {
	duty := p.duties.Hold(ctx, checkpointDuty)
	defer duty.End()
	if duty.Has(checkpointDuty) {
		return p.publish(ctx)
	}
	return p.follow(ctx)
}

// reseal seals the log's key with the sealer's first key. It reports whether the
// key was sealed with another one before.
func (p *publisher) reseal(ctx context.Context, sealer *broker.Sealer) (bool, error) {
	return token.Reseal(ctx, p, sealer, broker.SigningKeyID{Purpose: logPurpose, ID: p.signer.Origin()})
}
