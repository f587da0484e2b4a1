package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// NewStandby copies a running server into a new folder under dir and starts the copy as a
// streaming standby, which answers reads.
func (p *Postgres) NewStandby(ctx context.Context, dir, name string) (*Postgres, error) {
	s, err := newPostgres(dir, name)
	if err != nil {
		return nil, err
	}
	source := fmt.Sprintf("host=127.0.0.1 port=%d user=%s application_name=%s", p.Port, Admin, name)
	args := []string{"--pgdata", s.Data(), "--dbname", source, "--no-password", "--write-recovery-conf",
		"--wal-method", "stream", "--checkpoint", "fast", "--no-sync"}
	if p.tables != "" {
		args = append(args, "--tablespace-mapping", p.tables+"="+filepath.Join(s.dir, "tables"))
	}
	if err := s.run(ctx, "pg_basebackup", args...); err != nil {
		return nil, err
	}
	if err := s.Configure("unix_socket_directories = '" + s.dir + "'"); err != nil {
		return nil, err
	}
	return s, s.Start(ctx)
}

// AwaitStandby waits until a standby has replayed everything that the primary has written.
func (p *Postgres) AwaitStandby(ctx context.Context, s *Postgres) error {
	lsn, err := p.Exec(ctx, "postgres", "SELECT pg_current_wal_flush_lsn()")
	if err != nil {
		return err
	}
	return Await(ctx, "the standby", time.Minute, func() error {
		done, err := s.Exec(ctx, "postgres", fmt.Sprintf("SELECT pg_last_wal_replay_lsn() >= '%s'", lsn))
		if err == nil && done != "t" {
			err = fmt.Errorf("it has not replayed %s", lsn)
		}
		return err
	})
}

// Promote makes a standby a primary, and waits until it accepts writes.
func (p *Postgres) Promote(ctx context.Context) error {
	if _, err := p.Exec(ctx, "postgres", "SELECT pg_promote(true, 60)"); err != nil {
		return err
	}
	return Await(ctx, "the promotion", time.Minute, func() error {
		standby, err := p.Exec(ctx, "postgres", "SELECT pg_is_in_recovery()")
		if err == nil && standby != "f" {
			err = fmt.Errorf("%s is still a standby", p.name)
		}
		return err
	})
}
