package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) factsCommand() *cobra.Command {
	var f api.StandingFilter
	c := &cobra.Command{
		Use:   "facts KIND [NAME]",
		Short: "List what access rests on: suppliers, people, agents, tickets, sources",
		Long: `facts lists the subjects of a kind, or one of them, with what each source states
about it, when it ends, and since when it does not hold. KIND is supplier,
person, agent, ticket or source. It needs the action audit, or the admin socket.`,
		Example: `  broker facts supplier --admin-socket /run/broker/admin.sock
  broker facts person login/ana --as-person
  broker facts ticket -o json --as-person`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usage("facts takes KIND and perhaps NAME; see %s --help", c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if f.Kind = args[0]; len(args) > 1 {
				f.Name = args[1]
			}
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				page, err := client.Standings(ctx, f)
				if err != nil {
					return err
				}
				return a.printTable(page, func(w io.Writer) { writeStandings(w, page) })
			})
		},
	}
	c.Flags().StringVar(&f.Cursor, "cursor", "", "continue a list")
	c.Flags().IntVar(&f.Limit, "limit", 0, "list at most so many (default 100)")
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

func writeStandings(w io.Writer, page *api.StandingPage) {
	if len(page.Standings) == 0 {
		fmt.Fprintln(w, "no source states anything about it")
		return
	}
	fmt.Fprint(w, "NAME\tHOLDS\tENDS\tSOURCES\n")
	for _, s := range page.Standings {
		state := "yes"
		if !s.Holds {
			state = "no: " + strings.ReplaceAll(s.Cause, "_", " ")
		}
		var sources []string
		for _, f := range s.Facts {
			sources = append(sources, f.Source+" "+f.State)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", printable(s.Name), printable(state), dayOf(s.EndsAt), printable(strings.Join(sources, ", ")))
	}
	if page.Next != "" {
		fmt.Fprintf(w, "more: --cursor %s\n", printable(page.Next))
	}
}

// dayOf returns a time to the minute, or a dash for none.
func dayOf(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04Z")
}
