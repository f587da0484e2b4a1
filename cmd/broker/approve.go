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

// voteFlags are the flags of approve, deny and review.
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
		Short: "Show a request and approve it",
		Long: `approve shows the request and asks for confirmation. Your approval is bound to
the request as shown: if the request has changed, the broker refuses the
approval. You can narrow the grant, but not widen it.`,
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
	c.Flags().StringSliceVar(&f.scopes, "scope", nil, "grant only this scope; repeatable")
	c.Flags().Var((*positiveFlag)(&f.ttl), "ttl", "limit how long each credential is valid")
	c.Flags().Var((*positiveFlag)(&f.duration), "duration", "limit how long credentials can be collected")
	return c
}

func (a *app) denyCommand() *cobra.Command {
	var f voteFlags
	c := &cobra.Command{
		Use:   "deny REQUEST",
		Short: "Show a request and deny it",
		Long: `deny shows the request and asks for confirmation and for a reason, which the
requester reads. The reason may be empty only if policy permits it. With --yes,
give the reason with --comment.`,
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

func (f *voteFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.comment, "comment", "", "a comment, shown with the request and recorded in the log")
	c.Flags().BoolVar(&f.yes, "yes", false, "don't ask for confirmation")
}

func (a *app) vote(ctx context.Context, id string, v api.Vote, yes bool) error {
	return a.withPerson(ctx, func(ctx context.Context, client *api.Client) error {
		r, err := client.Request(ctx, id)
		if err != nil {
			return err
		}
		in := bufio.NewReader(a.in)
		if err := a.confirm(ctx, in, r, v.Decision, yes); err != nil {
			return err
		}
		if v.Decision == api.Deny && v.Comment == "" && !yes {
			if v.Comment, err = a.reason(ctx, in, r); err != nil {
				return err
			}
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
		Short: "Record whether a break-glass use was justified; and access reviews",
		Long: `review closes the review of a break-glass use, whose request it takes. Its
commands start, show and decide access reviews, in which people keep, narrow or
end standing access.`,
		Example: `  broker review req_0658sg2b7puh5u0qv0s9k8g6nk --justified --comment "the shop was down, see INC-4711"
  broker review req_0658sg2b7puh5u0qv0s9k8g6nk --unjustified --comment "the ticket was a week old"`,
		RunE: func(c *cobra.Command, args []string) error {
			if justified == unjustified {
				return usage("review needs --justified or --unjustified")
			}
			found := api.Finding{Verdict: api.Unjustified, Comment: f.comment}
			if justified {
				found.Verdict = api.Justified
			}
			return a.withPerson(c.Context(), func(ctx context.Context, client *api.Client) error {
				r, err := client.Request(ctx, args[0])
				if err != nil {
					return err
				}
				if err := a.confirm(ctx, bufio.NewReader(a.in), r, "close the review as "+found.Verdict, f.yes); err != nil {
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
	c.Flags().BoolVar(&justified, "justified", false, "the use was justified")
	c.Flags().BoolVar(&unjustified, "unjustified", false, "the use was not justified")
	a.addCampaigns(c)
	return c
}

// confirm shows a request and asks the person to confirm the action what.
func (a *app) confirm(ctx context.Context, in *bufio.Reader, r *api.Request, what string, yes bool) error {
	if yes {
		return nil
	}
	if !interactive(a.in) {
		return usage("standard input is not a terminal: read the request, then repeat with --yes")
	}
	a.showRequest(a.err, r)
	fmt.Fprintf(a.err, "\n%s? [y/N] ", strings.ToUpper(what[:1])+what[1:])
	line, err := a.answer(ctx, in)
	if err != nil && err != io.EOF {
		return err
	}
	if answer := strings.ToLower(line); answer != "y" && answer != "yes" {
		return errNotConfirmed
	}
	return nil
}

// reason asks the person why they deny a request. An empty answer does nothing, unless
// policy permits a denial without a reason.
func (a *app) reason(ctx context.Context, in *bufio.Reader, r *api.Request) (string, error) {
	silent := r.Decision.Obligations != nil && r.Decision.Obligations.SilentDenial
	hint := ""
	if silent {
		hint = " (may be empty)"
	}
	fmt.Fprintf(a.err, "Reason, for the requester%s: ", hint)
	line, err := a.answer(ctx, in)
	if err != nil && err != io.EOF {
		return "", err
	}
	if line == "" && !silent {
		return "", usage("a denial needs a reason, which the requester reads: nothing was done")
	}
	return line, nil
}
