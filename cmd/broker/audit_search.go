package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) auditSearchCommand() *cobra.Command {
	var f api.AuditFilter
	var from, to string
	c := &cobra.Command{
		Use:   "search",
		Short: "Search the log of a running broker, newest first",
		Long: `search lists records of the log as sentences. It needs the action audit, or
the admin socket. A search reads a bounded number of records at a time: it
states how far it got, and --cursor continues. "broker audit verify" checks
records; "broker audit show" reads a database or an export without a broker.`,
		Example: `  broker audit search --kind block --admin-socket /run/broker/admin.sock
  broker audit search --who login/ana --from 2026-11-01 --to 2026-12-01 --as-person
  broker audit search --entitlement tickets-api --text INC-4711 -o json`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if f.From, err = searchTime("from", from); err != nil {
				return err
			}
			if f.To, err = searchTime("to", to); err != nil {
				return err
			}
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				page, err := client.SearchAudit(ctx, f)
				if err != nil {
					return err
				}
				return a.printTable(page, func(w io.Writer) { writeFound(w, page) })
			})
		},
	}
	c.Flags().StringVar(&f.Kind, "kind", "", "list only records of this kind, such as block.placed, or of all kinds of a subject, such as block")
	c.Flags().StringVar(&f.Who, "who", "", "list only records that this SPIFFE ID or person caused, or that are about it")
	c.Flags().StringVar(&f.Text, "text", "", "list only records that contain this text, in any case")
	c.Flags().StringVar(&from, "from", "", "list only records from this time on: RFC 3339, or a date in UTC")
	c.Flags().StringVar(&to, "to", "", "list only records before this time: RFC 3339, or a date in UTC")
	addPageFlags(c, &f.Entitlement, &f.Cursor, &f.Limit)
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

func searchTime(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("--%s must be a time such as 2026-11-29T14:00:00Z, or a date such as 2026-11-29", flag)
}

// writeFound writes the records that a search found, and how far it got.
func writeFound(w io.Writer, page *api.AuditPage) {
	for _, r := range page.Records {
		var record struct {
			Time time.Time `json:"time"`
		}
		_ = json.Unmarshal(r.Record, &record) // without a time, the zero time is shown
		fmt.Fprintf(w, "%s\t%s\t%s\n", strconv.FormatInt(r.Index, 10), clock(record.Time), printable(r.Summary))
	}
	switch {
	case page.Next != "":
		fmt.Fprintf(w, "searched back to %s; more: --cursor %s\n", clock(page.SearchedTo), page.Next)
	case len(page.Records) == 0:
		fmt.Fprintln(w, "no such records")
	}
}
