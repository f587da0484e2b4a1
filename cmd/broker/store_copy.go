package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/audit/verify"
	"accessbroker.internal/store"
)

func (a *app) storeCopyCommand() *cobra.Command {
	var roles []string
	c := &cobra.Command{
		Use:   "copy FROM TO",
		Short: "Copy a database of SQLite to PostgreSQL, with the log and its proofs",
		Long: `copy moves a broker from SQLite to PostgreSQL. Stop the broker first. FROM is
the database of SQLite. TO is an empty database of PostgreSQL, in the name of
the role that will own the tables; --grant names the role of the broker.

copy copies every row, every record with its proofs and signatures, and the
log's rules, in one transaction: completely or not at all. It reads each table
back and compares it, and afterwards verifies the whole log in TO.

FROM stays as it is. The file FROM.moved next to it keeps brokers from serving
it again, because two databases would fork the log. Afterwards, set in the
operator's file
  - store to the URL of TO, as the role of the broker
  - server.checkpoint_file to the checkpoint file that the broker had: by
    default FROM.checkpoint
and keep the seal keys.

` + storeHelp,
		Example: `  broker store copy sqlite:/var/lib/broker/broker.db 'postgres://owner@db.acme.test/broker?password_file=owner.pw' --grant broker
  broker store copy sqlite:/var/lib/broker/broker.db env:OWNER_URL --grant broker -o json`,
		Args: exactly(2, "two databases, FROM and TO"),
		RunE: func(c *cobra.Command, args []string) error {
			from, err := a.storeURL(args[0])
			if err != nil {
				return err
			}
			to, err := a.storeURL(args[1])
			if err != nil {
				return err
			}
			if store.IsPostgres(from) || !store.IsPostgres(to) {
				return usage(`copy goes from SQLite to PostgreSQL: FROM is sqlite:PATH and TO is a URL of PostgreSQL; for a copy of a SQLite database, use "broker backup"`)
			}
			return a.copyStore(c.Context(), from, to, roles)
		},
	}
	c.Flags().StringArrayVar(&roles, "grant", nil, "grant a role of PostgreSQL what a broker needs; repeatable")
	return c
}

func (a *app) copyStore(ctx context.Context, from, to string, roles []string) error {
	report, err := store.Copy(ctx, from, to, store.CopyOptions{Roles: roles, Progress: a.copyProgress()})
	if err != nil {
		return err
	}
	log, err := verifyCopy(ctx, to, report)
	if err != nil {
		return fmt.Errorf("the copy does not verify; do not serve it: %w", err)
	}
	return a.print(report, func(w io.Writer) {
		c := card{w}
		c.line("copied", fmt.Sprintf("%s in %d tables", counted(int(report.Rows), "row"), len(report.Tables)))
		c.line("to", printable(report.To))
		c.line("log", log.Origin)
		c.line("records", strconv.FormatInt(log.Records, 10)+", all verified in the copy")
		c.line("root", log.Root.String())
		c.line("source", "unchanged; "+report.Marker+" keeps brokers from serving it")
		c.line("next", "set store to the broker's URL of the copy, and server.checkpoint_file to the broker's checkpoint file")
	})
}

// verifyCopy verifies the whole log of a copy, and compares its end with the source's.
func verifyCopy(ctx context.Context, url string, report *store.CopyReport) (*verify.Report, error) {
	src, err := store.OpenSource(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = src.Close() }()
	log, err := verify.Verify(ctx, src, verify.Options{})
	if err == nil && (log.Records != report.Records || log.Root != report.Root) {
		err = errors.New("its log does not end as that of the source")
	}
	return log, err
}

// copyProgress returns a function that shows at a terminal how far a copy is.
func (a *app) copyProgress() func(table string, done, of int64) {
	if !interactive(a.err) {
		return nil
	}
	return func(table string, done, of int64) {
		end := ""
		if done == of {
			end = "\n"
		}
		fmt.Fprintf(a.err, "\r%-20s %12d of %d%s%s", table, done, of, strings.Repeat(" ", 4), end)
	}
}
