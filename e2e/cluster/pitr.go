package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Archive returns a new folder to which PostgreSQL can archive its write-ahead log. The caller
// removes it.
func Archive() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "archive-"); err != nil {
		return "", err
	}
	return dir, GiveToPostgres(dir)
}

// BaseBackup copies the running server into a new folder, from which Rewind restores it.
func (p *Postgres) BaseBackup(ctx context.Context, name string) (folder string, err error) {
	folder = filepath.Join(p.dir, name)
	source := fmt.Sprintf("host=127.0.0.1 port=%d user=%s", p.Port, Admin)
	return folder, p.run(ctx, "pg_basebackup", "--pgdata", folder, "--dbname", source, "--no-password", "--checkpoint", "fast", "--no-sync")
}

// Rewind restores a base backup in the place of a server that was stopped, with settings that
// state how far the archived write-ahead log is replayed, and starts the server.
func (p *Postgres) Rewind(ctx context.Context, folder string, settings ...string) error {
	if err := os.Rename(p.Data(), p.Data()+".lost"); err != nil {
		return err
	}
	if err := os.Rename(folder, p.Data()); err != nil {
		return err
	}
	if err := p.Configure(settings...); err != nil {
		return err
	}
	signal := filepath.Join(p.Data(), "recovery.signal")
	if err := errors.Join(os.WriteFile(signal, nil, 0o600), os.Chmod(signal, 0o666)); err != nil { // PostgreSQL writes it
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	// It answers reads before the end of the recovery.
	return Await(ctx, "the end of the recovery", time.Minute, func() error {
		if out, err := p.Exec(ctx, "postgres", "SELECT pg_is_in_recovery()"); err != nil || out != "f" {
			return fmt.Errorf("in recovery: %q, %w", out, err)
		}
		return nil
	})
}
