package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) membershipsCommand() *cobra.Command {
	var f api.MembershipFilter
	c := &cobra.Command{
		Use:   "memberships",
		Short: "List memberships in other systems, and how they differ",
		Long: `memberships lists the members of groups that leases rely on, and those that
the broker removed in the previous 30 days. The broker compares them with each
system, and shows a difference as the state:

  removed-early  someone removed a member that a lease relies on
  added-again    someone added a member again that the broker had removed
  left-behind    the lease of the membership was abandoned

Auditors and operators see all memberships, all others their own.`,
		Example: `  broker memberships --as-person
  broker memberships --differs --admin-socket /run/broker/admin.sock
  broker memberships accept 5d2f0fbc3fa6d0b8 --why "Ana moved to the sales team"`,
		Args: exactly(0, "no arguments, or accept"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				page, err := client.Memberships(ctx, f)
				if err != nil {
					return err
				}
				rows := make([][]string, len(page.Memberships))
				for i, m := range page.Memberships {
					rows[i] = []string{printable(m.System), printable(m.Group), printable(m.Holder), membershipState(m), m.ID[:min(len(m.ID), shortMembership)]}
				}
				return a.printPage(page, "memberships", membershipColumns, rows, page.Next)
			})
		},
	}
	c.Flags().StringVar(&f.Holder, "holder", "", "list only this SPIFFE ID, or person such as login/ana")
	c.Flags().StringVar(&f.Issuer, "issuer", "", "list only this issuer")
	c.Flags().BoolVar(&f.Differs, "differs", false, "list only memberships of which the system and the broker's records differ")
	c.Flags().StringVar(&f.Cursor, "cursor", "", "continue after an earlier page")
	c.Flags().IntVar(&f.Limit, "limit", 0, "the length of a page (default 50, at most 200)")
	a.client.addPerson(c)
	a.client.addAdmin(c)
	c.AddCommand(a.acceptMembershipCommand())
	return c
}

var membershipColumns = []string{"SYSTEM", "GROUP", "HOLDER", "STATE", "ID"}

// membershipState describes a membership in a few words.
func membershipState(m api.Membership) string {
	switch {
	case m.Difference == api.RemovedEarly:
		return "removed-early"
	case m.Difference == api.AddedAgain:
		return "added-again"
	case m.Difference == api.LeftBehind:
		return "left-behind"
	case m.Existing:
		return "existed-before"
	case len(m.Leases) > 0:
		return "member"
	}
	return "removed"
}

// shortMembership is how many characters of an ID a table shows.
const shortMembership = 16

var membershipID = regexp.MustCompile(`^[0-9a-f]{16,64}$`)

// fullMembership returns the ID of the only membership with a difference whose ID begins
// with the text.
func fullMembership(ctx context.Context, client *api.Client, start string) (found string, err error) {
	f := api.MembershipFilter{Differs: true, Limit: 200}
	for {
		page, err := client.Memberships(ctx, f)
		if err != nil {
			return "", err
		}
		for _, m := range page.Memberships {
			if !strings.HasPrefix(m.ID, start) {
				continue
			}
			if found != "" {
				return "", fmt.Errorf("several memberships begin with %s: write more of the ID, as -o json shows it", start)
			}
			found = m.ID
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			break
		}
	}
	if found == "" {
		return "", fmt.Errorf("no membership with a difference begins with %s: see broker memberships --differs", start)
	}
	return found, nil
}

func (a *app) acceptMembershipCommand() *cobra.Command {
	var socket, why string
	c := &cobra.Command{
		Use:   "accept ID",
		Short: "Keep a membership that someone added again, or that was left behind",
		Long: `accept ends the difference of a membership: the membership stays as it is, and
the broker no longer counts it as its own. Operators use the admin socket;
people whom policy permits to operate the broker use --as-person. The log
records the reason.`,
		Example: `  broker memberships accept 5d2f0fbc3fa6d0b8 --why "Ana moved to the sales team"`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !membershipID.MatchString(args[0]) {
				return usage("accept takes the ID of one membership, as broker memberships lists it")
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withAdmin(c.Context(), socket, adminWait, func(ctx context.Context, client *api.Client) error {
				id, err := fullMembership(ctx, client, args[0])
				if err != nil {
					return err
				}
				m, err := client.AcceptMembership(ctx, id, why)
				if err != nil {
					return err
				}
				return a.print(m, func(w io.Writer) {
					fmt.Fprintf(w, "system\t%s\ngroup\t%s\nmember\t%s\nstate\t%s\n", printable(m.System), printable(m.Group), printable(m.Member), membershipState(*m))
				})
			})
		},
	}
	a.adminSocketFlag(c, &socket)
	a.client.addOperator(c)
	addWhy(c, &why)
	return c
}
