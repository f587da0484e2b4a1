package main

import (
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"accessbroker.internal/internal/service"
)

func (a *app) replicasCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "replicas",
		Short: "List the brokers that share the database, and whether they agree",
		Long: `replicas asks the broker on this machine which brokers work on its database.
They agree if the columns REVISION and CONFIGURATION have one value each: the
rules by which they decide, and what their files must have alike. A replica that
has not announced itself for ten seconds is gone: it was ended, or can't reach
the database. An asterisk marks the broker that answers; -o json has when each
of them started.`,
		Example: `  broker replicas
  broker replicas -o json`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			var list []service.ReplicaState
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodGet, "/admin/replicas", &list); err != nil {
				return err
			}
			return a.printTable(list, func(w io.Writer) {
				if len(list) == 0 {
					fmt.Fprintln(w, "The broker shares its database with no other one.")
					return
				}
				fmt.Fprintln(w, "REPLICA\tSTATE\tREVISION\tCONFIGURATION\tCLOCK\tVERSION")
				for _, r := range list {
					state := r.State
					if r.NotReady != "" && state != "gone" {
						state += ": " + r.NotReady
					}
					name := r.Name
					if r.This {
						name += " *"
					}
					fmt.Fprintf(w, "%s\t%s\t%.12s\t%.12s\t%s\t%s\n", name, state, r.Revision, r.Config, r.Clock, r.Version)
				}
			})
		},
	}
	c.Flags().StringVar(&socket, "admin-socket", "", "admin socket of the broker (default $BROKER_ADMIN_SOCKET or "+usualAdminSocket+")")
	return c
}
