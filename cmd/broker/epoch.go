package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/store"
)

func (a *app) newEpochCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "new-epoch --config FILE",
		Short: "Open a new log, when the old one can't be continued",
		Long: `new-epoch is for a broker that refuses to start because its database is behind
the checkpoint that it remembered: somebody put an old copy back. The same if what
it remembered is gone. If the newest copy is lost for good, new-epoch opens a new
log, whose first record names the last checkpoint that was remembered. The old log
stays in the database, and auditors will see that it ended. The broker must not
run meanwhile.`,
		Example: `  broker audit new-epoch --config /etc/broker/broker.yaml`,
		Args:    exactly(0, "no arguments but --config FILE"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.load(config)
			if err != nil {
				return err
			}
			origin, err := s.newEpoch(c.Context())
			if err != nil {
				return err
			}
			return a.print(map[string]string{"origin": origin}, func(w io.Writer) { fmt.Fprintf(w, "the log %s is open\n", origin) })
		},
	}
	configFlag(c, &config)
	return c
}

func (s *settings) newEpoch(ctx context.Context) (origin string, err error) {
	sealer, err := broker.NewSealer(s.sealKeys...)
	if err != nil {
		return "", err
	}
	db, err := store.Open(ctx, store.Config{URL: s.store})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	remembered, err := audit.ReadCheckpointFile(s.checkpoint)
	if err != nil {
		return "", err
	}
	known, err := db.Log(ctx)
	if err != nil {
		return "", fmt.Errorf("there is no log to follow: %w", err)
	}
	if remembered == nil {
		// The file is lost: what the database says is the best that is known.
		remembered, err = db.Checkpoint(ctx)
		if errors.Is(err, broker.ErrNotFound) {
			return "", errors.New("nothing was published or remembered yet: it needs no new epoch")
		}
	} else if err = audit.CheckContinuation(remembered, known.Public, db.Head().Size, db.Hashes(ctx)); err == nil {
		return "", errors.New("the log continues what was remembered: it needs no new epoch")
	} else if errors.Is(err, audit.ErrRollback) {
		err = nil
	}
	if err != nil {
		return "", err
	}
	l, err := newLog(sealer, s.externalURL.Host+s.externalURL.Path, string(remembered))
	if err != nil {
		return "", err
	}
	if err := db.NewEpoch(ctx, l.origin, l.public, l.key, l.first); err != nil {
		return "", fmt.Errorf("opening a new log: %w", err)
	}
	// What was remembered is in the new log's first record: from here on the
	// new log's own checkpoints are remembered in its place.
	if err := os.Rename(s.checkpoint, s.checkpoint+"."+time.Now().UTC().Format("20060102T150405Z")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("putting the old checkpoint aside: %w", err)
	}
	return l.origin, nil
}

// A logBirth is what a log is opened with.
type logBirth struct {
	origin, public string
	key            *broker.SigningKey
	first          *audit.Entry
}

// newLog makes a log's name, its key and its first record, which names the
// last checkpoint of the log before, if there was one.
func newLog(sealer *broker.Sealer, home, previous string) (*logBirth, error) {
	l := &logBirth{origin: audit.NewOrigin(home)}
	secret, public, err := audit.NewLogKey(l.origin)
	if err != nil {
		return nil, err
	}
	record := audit.Record{Kind: audit.LogOpened, Log: &audit.LogFacts{Origin: l.origin, Previous: previous}}
	if l.first, err = record.Entry(); err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	now := time.Now()
	l.public = public
	l.key = &broker.SigningKey{
		ID: broker.SigningKeyID{Purpose: logPurpose, ID: l.origin}, Algorithm: "Ed25519",
		Sealed: sealer.Seal(logPurpose, l.origin, []byte(secret)), Published: now, Signs: now,
	}
	return l, nil
}
