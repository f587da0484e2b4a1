package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/audit"
	"accessbroker.internal/audit/verify"
	"accessbroker.internal/internal/service"
	"accessbroker.internal/store"
)

func (a *app) backupCommand() *cobra.Command {
	var file, database string
	var force, check bool
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Back up the database and what belongs to it, also of a running broker",
		Long: `backup writes one file with the database as of one instant, the rule files that
the log names and the newest signed checkpoint. A running broker continues to
issue. The copy is verified, record by record, before FILE gets its name: FILE
is complete, or not there. FILE is only for its owner. It is itself a SQLite
database that the audit commands read.

Keep apart from FILE, because FILE does not have them:
  - the seal keys, without which no broker starts with the database
  - the checkpoint file, which reveals that an old copy was restored
  - the operator's file and the policies

--verify checks FILE and writes nothing. Restore with "broker restore".
PostgreSQL has means of its own: see "Backup and restore" in docs/operations.md.`,
		Example: `  broker backup --config /etc/broker/broker.yaml /backup/broker-$(date +%F).backup
  broker backup --verify /backup/broker-2026-11-29.backup`,
		Args: exactly(1, "one file"),
		RunE: func(c *cobra.Command, args []string) error {
			if check {
				return a.verifyBackup(c.Context(), args[0])
			}
			url, err := a.storeToBackUp(file, database)
			if err != nil {
				return err
			}
			started := time.Now()
			info, err := store.Backup(c.Context(), url, args[0], store.BackupOptions{Program: service.ReadBuild().Version, Replace: force, Check: verifyLog})
			if errors.Is(err, store.ErrExists) {
				return fmt.Errorf("%w: choose another name, or replace it with --force", err)
			}
			if err != nil {
				return err
			}
			took := time.Since(started).Round(time.Millisecond)
			return a.print(info, func(w io.Writer) {
				writeBackup(w, args[0], info)
				card{w}.line("took", took.String())
				card{w}.line("keep apart", "the seal keys and the checkpoint file: this file does not have them")
			})
		},
	}
	configFlag(c, &file)
	c.Flags().StringVar(&database, "store", "", "the database, sqlite:PATH; default: that of the operator's file")
	c.Flags().BoolVar(&force, "force", false, "replace FILE if it exists")
	c.Flags().BoolVar(&check, "verify", false, "check FILE, and write nothing")
	return c
}

func (a *app) verifyBackup(ctx context.Context, file string) error {
	info, err := store.VerifyBackup(ctx, file, verifyLog)
	if err != nil {
		return err
	}
	return a.print(info, func(w io.Writer) {
		writeBackup(w, file, info)
		card{w}.line("verified", "the pages, the rows, the rule files and the log")
	})
}

// storeToBackUp returns the URL of the database, and an error for one of PostgreSQL.
func (a *app) storeToBackUp(file, database string) (string, error) {
	database, err := a.storeOf(database, file)
	if err != nil {
		return "", err
	}
	if store.IsPostgres(database) {
		return "", errors.New(`the database is on PostgreSQL, which has its own means for this: base backups and an archive of its write-ahead log, from which it can be restored to any point in time. "Backup and restore" in docs/operations.md has the steps`)
	}
	return database, nil
}

// verifyLog verifies a log, and returns its first problem.
func verifyLog(ctx context.Context, src audit.Source) error {
	_, err := verify.Verify(ctx, src, verify.Options{})
	return err
}

func writeBackup(w io.Writer, file string, info *store.BackupInfo) {
	c := card{w}
	c.line("backup", file)
	c.line("size", byteSize(info.Size))
	c.line("taken", clock(info.Taken)+", by broker "+info.Program)
	c.line("log", info.Origin)
	c.line("records", strconv.FormatInt(info.Records, 10)+", the last one at "+clock(info.Last))
	c.line("root", info.Root.String())
	if info.Signed < info.Records {
		c.line("signed", fmt.Sprintf("the first %d records", info.Signed))
	}
	c.line("rule files", strconv.Itoa(info.Rules))
}

// byteSize returns a number of bytes in the largest unit that leaves a number of at least one.
func byteSize(n int64) string {
	units := []string{"bytes", "KB", "MB", "GB", "TB"}
	size := float64(n)
	for len(units) > 1 && size >= 1000 {
		size, units = size/1000, units[1:]
	}
	if units[0] == "bytes" {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f %s", size, units[0])
}

func (a *app) restoreCommand() *cobra.Command {
	var file, to string
	var force bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Restore a backup as the database of a broker that does not run",
		Long: `restore verifies a backup and makes it the database: completely or not at all.
It refuses while a broker uses the database. A database that is there is kept
under another name, and only --force replaces it.

If the broker issued anything after the backup, its log went back: the broker
does not start until "broker audit new-epoch" has opened a new log. That command
also ends the credentials that were issued after the backup and can be found. If
the broker was stopped before the backup and its checkpoint file is there,
nothing is missing, and it starts.`,
		Example: `  broker restore --config /etc/broker/broker.yaml /backup/broker-2026-11-29.backup
  broker restore --to /var/lib/broker/broker.db broker-2026-11-29.backup`,
		Args: exactly(1, "one file"),
		RunE: func(c *cobra.Command, args []string) error {
			url, err := a.storeToBackUp(file, to)
			if err != nil {
				return err
			}
			r, err := store.Restore(c.Context(), args[0], url, store.RestoreOptions{Replace: force, Check: verifyLog})
			if err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) {
				writeBackup(w, args[0], r.BackupInfo)
				c := card{w}
				c.line("restored to", r.Database)
				if r.Aside != "" {
					c.line("before", "kept as "+filepath.Base(r.Aside)+", in the same folder")
				}
				c.line("next", `start the broker. If it refuses because its log is behind the checkpoint file, run "broker audit new-epoch"`)
			})
		},
	}
	configFlag(c, &file)
	c.Flags().StringVar(&to, "to", "", "the database to restore to, sqlite:PATH; default: that of the operator's file")
	c.Flags().BoolVar(&force, "force", false, "replace a database, which is kept under another name")
	return c
}
