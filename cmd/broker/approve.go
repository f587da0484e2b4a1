package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

// voteFlags are those of approve and deny.
type voteFlags struct {
	comment       string
	scopes        []string
	ttl, duration time.Duration
	yes           bool
}

func (a *app) approveCommand() *cobra.Command {
	var f voteFlags
	c := &cobra.Command{
		Use:   "approve REQUEST",
		Short: "Look at a request, and approve it",
		Long: `approve shows what is asked, and by whom, and asks you once more. What you approve
is what you saw: if the request has changed since, the broker refuses. You may
narrow what is granted, and never widen it.`,
		Example: `  broker approve req_0658sg2b7puh5u0qv0s9k8g6nk
  broker approve req_0658sg2b7puh5u0qv0s9k8g6nk --comment "as agreed in INC-4711" --ttl 5m
  broker approve req_0658sg2b7puh5u0qv0s9k8g6nk --scope tickets:read --yes`,
		RunE: func(c *cobra.Command, args []string) error {
			vote := api.Vote{Decision: api.Approve, Comment: f.comment, Scopes: f.scopes, TTL: api.Duration(f.ttl), Duration: api.Duration(f.duration)}
			return a.vote(c.Context(), args[0], vote, f.yes)
		},
	}
	takesID(c, "request")
	f.add(c)
	a.client.add(c)
	c.Flags().StringSliceVar(&f.scopes, "scope", nil, "grant these of the scopes only; may be given more than once")
	c.Flags().Var((*positiveFlag)(&f.ttl), "ttl", "grant credentials that live for at most so long")
	c.Flags().Var((*positiveFlag)(&f.duration), "duration", "let credentials be collected for at most so long")
	return c
}

func (a *app) denyCommand() *cobra.Command {
	var f voteFlags
	c := &cobra.Command{
		Use:     "deny REQUEST",
		Short:   "Look at a request, and deny it",
		Example: `  broker deny req_0658sg2b7puh5u0qv0s9k8g6nk --comment "use the read-only replica"`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.vote(c.Context(), args[0], api.Vote{Decision: api.Deny, Comment: f.comment}, f.yes)
		},
	}
	takesID(c, "request")
	f.add(c)
	a.client.add(c)
	return c
}

// add gives a command what all that decide have in common.
func (f *voteFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.comment, "comment", "", "why, kept with the request and in the log")
	c.Flags().BoolVar(&f.yes, "yes", false, "do not ask once more")
}

func (a *app) vote(ctx context.Context, id string, v api.Vote, yes bool) error {
	return a.asPerson(ctx, func(ctx context.Context, client *api.Client) error {
		r, err := client.Request(ctx, id)
		if err != nil {
			return err
		}
		if err := a.confirm(ctx, r, v.Decision, yes); err != nil {
			return err
		}
		v.Digest = r.Digest
		if r, err = client.Vote(ctx, id, v); err != nil {
			return err
		}
		return a.print(r, func(w io.Writer) { writeOutcome(w, r) })
	})
}

func (a *app) reviewCommand() *cobra.Command {
	var f voteFlags
	var justified, unjustified bool
	c := &cobra.Command{
		Use:   "review REQUEST",
		Short: "Say whether an emergency use was justified",
		Example: `  broker review req_0658sg2b7puh5u0qv0s9k8g6nk --justified --comment "the shop was down, see INC-4711"
  broker review req_0658sg2b7puh5u0qv0s9k8g6nk --unjustified --comment "the ticket was a week old"`,
		RunE: func(c *cobra.Command, args []string) error {
			if justified == unjustified {
				return usage("say --justified or --unjustified")
			}
			found := api.Finding{Verdict: api.Unjustified, Comment: f.comment}
			if justified {
				found.Verdict = api.Justified
			}
			return a.asPerson(c.Context(), func(ctx context.Context, client *api.Client) error {
				r, err := client.Request(ctx, args[0])
				if err != nil {
					return err
				}
				if err := a.confirm(ctx, r, "close the review as "+found.Verdict, f.yes); err != nil {
					return err
				}
				found.Digest = r.Digest
				if r, err = client.Review(ctx, args[0], found); err != nil {
					return err
				}
				return a.print(r, func(w io.Writer) { writeOutcome(w, r) })
			})
		},
	}
	takesID(c, "request")
	f.add(c)
	a.client.add(c)
	c.Flags().BoolVar(&justified, "justified", false, "it was")
	c.Flags().BoolVar(&unjustified, "unjustified", false, "it was not")
	return c
}

// confirm shows a request and asks the person, on the terminal.
func (a *app) confirm(ctx context.Context, r *api.Request, what string, yes bool) error {
	if yes {
		return nil
	}
	if !interactive(a.in) {
		return usage("there is nobody to ask: look at the request, and give --yes")
	}
	a.showRequest(a.err, r)
	fmt.Fprintf(a.err, "\n%s? [y/N] ", strings.ToUpper(what[:1])+what[1:])
	line, err := a.answer(ctx, bufio.NewReader(a.in))
	if err != nil && err != io.EOF {
		return err
	}
	if answer := strings.ToLower(line); answer != "y" && answer != "yes" {
		return errNotConfirmed
	}
	return nil
}
