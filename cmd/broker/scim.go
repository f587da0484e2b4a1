package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/internal/service"
)

// usualSCIMToken is how long a token of a client is valid unless the operator says so.
const usualSCIMToken = 180 * 24 * time.Hour

func (a *app) scimCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "scim",
		Short: "Tokens of the clients that provision people and groups",
		Long: `The clients of the sources in the scim section of the operator's file provision
people and groups with SCIM 2.0. Each has a token that the broker signs for that
source alone.`,
		Example: `  broker scim token corp
  broker scim tokens
  broker scim revoke stk_0aq4…`,
	}
	c.AddCommand(a.scimTokenCommand(), a.scimTokensCommand(), a.scimRevokeCommand())
	return c
}

func (a *app) scimTokenCommand() *cobra.Command {
	var socket string
	lasts := usualSCIMToken
	c := &cobra.Command{
		Use:   "token SOURCE",
		Short: "Sign a token for the client of a source, and print it once",
		Long: `token signs a bearer token that may provision the people and groups of one
source, and nothing else. The broker does not store it: enter it at the
provider.
Earlier tokens stay valid, so that the client can change to the new one. Revoke
them after that.`,
		Example: `  broker scim token corp
  broker scim token corp --valid-for 720h`,
		Args: exactly(1, "the name of a source in the scim section of the operator's file"),
		RunE: func(c *cobra.Command, args []string) error {
			var t service.SCIMToken
			query := url.Values{"source": {args[0]}, "valid_for": {lasts.String()}}
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodPost, "/admin/scim/tokens?"+query.Encode(), &t); err != nil {
				return err
			}
			return a.print(t, func(w io.Writer) {
				fmt.Fprintf(w, "token %s for %s, valid until %s\nURL:   %s\nToken: %s\n", t.ID, t.Source, clock(t.Expires), t.URL, t.Token)
			})
		},
	}
	c.Flags().DurationVar(&lasts, "valid-for", lasts, "how long the token is valid, at most 8784h")
	a.adminSocketFlag(c, &socket)
	return c
}

func (a *app) scimTokensCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:     "tokens",
		Short:   "List the clients' tokens that have not expired",
		Example: `  broker scim tokens`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			var list []service.SCIMToken
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodGet, "/admin/scim/tokens", &list); err != nil {
				return err
			}
			return a.printTable(list, func(w io.Writer) {
				fmt.Fprintln(w, "TOKEN\tSOURCE\tCREATED\tVALID UNTIL\tSTATE")
				for _, t := range list {
					state := "in force"
					if !t.Revoked.IsZero() {
						state = "revoked " + clock(t.Revoked)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", t.ID, t.Source, clock(t.Created), clock(t.Expires), state)
				}
			})
		},
	}
	a.adminSocketFlag(c, &socket)
	return c
}

func (a *app) scimRevokeCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:     "revoke TOKEN",
		Short:   "End a client's token at once",
		Example: `  broker scim revoke stk_0aq4…`,
		Args:    exactly(1, "the id of a token, from \"broker scim tokens\""),
		RunE: func(c *cobra.Command, args []string) error {
			var t service.SCIMToken
			if err := adminCall(c.Context(), a.adminSocket(socket), http.MethodPost, "/admin/scim/tokens/"+url.PathEscape(args[0])+"/revoke", &t); err != nil {
				return err
			}
			if t.ID == "" {
				return errors.New("the broker did not answer with the token")
			}
			return a.print(t, func(w io.Writer) { fmt.Fprintf(w, "token %s of %s is revoked\n", t.ID, t.Source) })
		},
	}
	a.adminSocketFlag(c, &socket)
	return c
}
