package main

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"accessbroker.internal/internal/config"
	"accessbroker.internal/store"
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check an operator's file and its policies, without starting",
		Long: `check reads the operator's file and its policies, and reports every mistake:
where it is, and what to write instead. Warnings are printed and do not fail. If
the file has mistakes in names that policies use, such as a trust domain, check
reports only the file's mistakes and skips the policies.

With PostgreSQL, check connects to the database, and changes nothing in it. It
checks the server's version and settings, the encoding, the schema, the rights
of the role, the clock and the free connections.`,
		Example: `  broker check /etc/broker/broker.yaml`,
		Args:    exactly(1, "one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, engine, err := config.Check(args[0], a.getenv)
			if err != nil {
				return err
			}
			warnings := slices.Concat(cfg.Warnings, engine.Warnings())
			for _, w := range warnings {
				fmt.Fprintf(a.err, "warning: %s\n", w)
			}
			found := struct {
				Policies     int           `json:"policies"`
				Entitlements int           `json:"entitlements"`
				Revision     string        `json:"revision"`
				Store        *store.Report `json:"store,omitempty"`
				Warnings     []string      `json:"warnings,omitempty"`
			}{engine.Len(), len(cfg.Catalogue), engine.Revision().String(), cfg.StoreReport, warnings}
			policies := fmt.Sprintf("%d policies", found.Policies)
			if found.Policies == 1 {
				policies = "1 policy"
			}
			return a.print(found, func(w io.Writer) {
				fmt.Fprintf(w, "%s is valid: %s, %s, revision %.12s\n", args[0], policies, counted(found.Entitlements, "entitlement"), found.Revision)
				if found.Store != nil {
					fmt.Fprintf(w, "store: %s\n", printable(found.Store.String()))
				}
			})
		},
	}
}
