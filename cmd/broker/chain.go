package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) showCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show REQUEST|LEASE",
		Short: "Show a request or a lease, and on whose behalf",
		Long: `show shows a request, or that of a lease. If the requester acts on behalf of
another identity, show draws the chain from the one whose rights are used down
to the requester.`,
		Example: `  broker show req_0658sg2b7puh5u0qv0s9k8g6nk
  broker show lse_0658sg2b7puh5u0qv0s9k8g6nk --as-person`,
		ValidArgsFunction: cobra.NoFileCompletions,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !isID("request", args[0]) && !isID("lease", args[0]) {
				return usage("show takes the id of a request, req_…, or of a lease, lse_…")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.withClient(c.Context(), func(ctx context.Context, client *api.Client) error {
				id := args[0]
				if isID("lease", id) {
					l, err := client.Lease(ctx, id)
					if err != nil {
						return err
					}
					id = l.Request
				}
				r, err := client.Request(ctx, id)
				if err != nil {
					return err
				}
				return a.print(r, func(w io.Writer) { writeRequest(w, r) })
			})
		},
	}
	a.client.addPerson(c)
	return c
}

// chain draws who acts for whom: the one whose rights are used, those that acted before, and
// the requester.
func (c card) chain(r *api.Request) {
	if r.OnBehalfOf == "" {
		return
	}
	links := append(append([]string{r.OnBehalfOf}, r.Actors...), r.Requester)
	rows := make([]string, len(links))
	for depth, id := range links {
		branch := ""
		if depth > 0 {
			branch = strings.Repeat("   ", depth-1) + "└─ "
		}
		rows[depth] = branch + printable(id)
	}
	c.rows("acts for", rows)
	if r.Parent != "" {
		c.line("exchanged", "the token of "+r.Parent)
	}
}
