package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/store"
)

func (a *app) storeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "store",
		Short: "Migrate the broker's database, or copy it to PostgreSQL",
		Args:  exactly(0, "a command: migrate or copy"),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.storeMigrateCommand(), a.storeCopyCommand())
	return c
}

func (a *app) storeMigrateCommand() *cobra.Command {
	var file, database string
	var roles []string
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the tables of a database to this program's version, apart from serving",
		Long: `migrate creates the tables of the broker, or brings them to the version of this
program. It goes forward only, in one transaction, and waits for another
migrate. Brokers of the version before continue to work with the new tables, so
migrate first, and then replace the brokers one by one.

With PostgreSQL, run it as the role that owns the tables, and let the broker use
another role, which --grant gives the rights that a broker needs: it may append
records to the log, and never change or delete them. Later migrations grant the
same roles their rights on new tables by themselves.

Without --store, migrate uses the database and the role of the operator's file.

` + storeHelp,
		Example: `  broker store migrate --store 'postgres://owner@db.acme.test/broker?password_file=owner.pw' --grant broker
  OWNER_URL=postgres://… broker store migrate --store env:OWNER_URL --grant broker --grant broker-eu
  broker store migrate --config /etc/broker/broker.yaml`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			url, err := a.storeOf(database, file)
			if err != nil {
				return err
			}
			m, err := store.Migrate(c.Context(), url, roles)
			if err != nil {
				return err
			}
			return a.print(m, func(w io.Writer) { writeMigration(w, m) })
		},
	}
	configFlag(c, &file)
	c.Flags().StringVar(&database, "store", "", "the database, as the owner of its tables; default: that of the operator's file")
	c.Flags().StringArrayVar(&roles, "grant", nil, "grant a role of PostgreSQL what a broker needs; repeatable")
	return c
}

func writeMigration(w io.Writer, m *store.Migration) {
	c := card{w}
	c.line("database", printable(m.Database))
	switch {
	case m.From == m.To:
		c.line("schema", fmt.Sprintf("version %d already", m.To))
	case m.From == 0:
		c.line("schema", fmt.Sprintf("created, version %d", m.To))
	case m.From > m.To:
		c.line("schema", fmt.Sprintf("version %d, of a newer program that is compatible with this one", m.From))
	default:
		c.line("schema", fmt.Sprintf("migrated from version %d to %d", m.From, m.To))
	}
	if len(m.Granted) > 0 {
		c.line("granted", printable(strings.Join(m.Granted, ", ")))
	}
}
