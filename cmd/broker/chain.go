package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
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
to the requester. Of a lease, it shows the calls with its credential, too.`,
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
				id, calls := args[0], (*api.CallCounts)(nil)
				if isID("lease", id) {
					l, err := client.Lease(ctx, id)
					if err != nil {
						return err
					}
					id, calls = l.Request, l.Calls
				}
				r, err := client.Request(ctx, id)
				if err != nil {
					return err
				}
				return a.print(r, func(w io.Writer) {
					writeRequest(w, r)
					card{w}.calls(calls)
				})
			})
		},
	}
	a.client.addPerson(c)
	return c
}

// calls writes how a credential was used in calls, as its holder states it.
func (c card) calls(n *api.CallCounts) {
	if n == nil {
		return
	}
	c.line("calls", fmt.Sprintf("%d made, %d refused, %d failed; %d bytes sent, %d received; last reported %s", n.Made, n.Refused, n.Failed, n.Sent, n.Received, clock(n.LastAt)))
	c.line("", "(stated by the holder, not verified)")
}

// chain draws who acts for whom: the one whose rights are used, those that acted before, and
// the requester.
func (c card) chain(r *api.Request) {
	if r.OnBehalfOf == "" {
		return
	}
	links := append(append([]string{r.OnBehalfOf}, r.Actors...), r.Requester)
	var rows []string
	for depth, id := range links {
		branch, below := "", ""
		if depth > 0 {
			below = strings.Repeat("   ", depth)
			branch = strings.Repeat("   ", depth-1) + "└─ "
		}
		for _, part := range pathRows(printable(id), cardWidth-len(below)) {
			rows, branch = append(rows, branch+part), below
		}
	}
	c.rows("acts for", rows)
	if r.Parent != "" {
		c.line("exchanged", "the token of "+r.Parent)
	}
}

// pathRows divides a SPIFFE ID into rows, after slashes if possible, so that the terminal does
// not continue it below the names.
func pathRows(id string, width int) (rows []string) {
	width = max(width, leastWidth)
	for len(id) > width {
		at := strings.LastIndexByte(id[:width], '/') + 1
		if at <= len("spiffe://") && strings.HasPrefix(id, "spiffe://") || at == 0 {
			return append(rows, broken(id, width)...)
		}
		rows, id = append(rows, id[:at]), id[at:]
	}
	return append(rows, id)
}

// withSubjects adds a column, before the last one, with on whose behalf each row is. A list
// without any has no such column.
func withSubjects(columns []string, rows [][]string, subjects []string) (_ []string, _ [][]string) {
	if !slices.ContainsFunc(subjects, func(s string) bool { return s != "" }) {
		return columns, rows
	}
	last := len(columns) - 1
	for i := range rows {
		rows[i] = slices.Insert(rows[i], last, cmp.Or(subjects[i], "-"))
	}
	return slices.Insert(slices.Clone(columns), last, "FOR"), rows
}
