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

func (a *app) leasesCommand() *cobra.Command {
	var f api.LeaseFilter
	c := &cobra.Command{
		Use:   "leases",
		Short: "List the credentials that were issued, newest first",
		Example: `  broker leases --live
  broker leases --holder '*' --entitlement tickets-api -o json
  broker leases --live --admin-socket /run/broker/admin.sock
  broker leases abandon lse_0658sg2b7puh5u0qv0s9k8g6nk --why "the cluster was deleted"`,
		Args: exactly(0, "no arguments, or abandon"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.operatorSession(c.Context(), func(ctx context.Context, client *api.Client) error {
				page, err := client.Leases(ctx, f)
				if err != nil {
					return err
				}
				return a.print(page, func(w io.Writer) { writeLeases(w, page) })
			})
		},
	}
	c.Flags().StringVar(&f.Holder, "holder", "", "a SPIFFE ID, a person as login/ana, or '*' for everybody whose leases you may view (default: you; by the admin socket, everybody)")
	c.Flags().StringVar(&f.Entitlement, "entitlement", "", "of one entitlement only")
	c.Flags().StringVar(&f.Request, "request", "", "of one request only")
	c.Flags().BoolVar(&f.Live, "live", false, "only what may still work; also what has expired, if its issuer has yet to end it")
	c.Flags().StringVar(&f.Cursor, "cursor", "", "where the page before ended")
	c.Flags().IntVar(&f.Limit, "limit", 0, "how many (default 50, at most 200)")
	a.client.addPerson(c)
	a.client.addAdmin(c)
	completes(c, "entitlement", a.completeEntitlement)
	c.AddCommand(a.abandonCommand())
	return c
}

func (a *app) abandonCommand() *cobra.Command {
	var socket, why string
	c := &cobra.Command{
		Use:   "abandon LEASE",
		Short: "Give up a lease whose issuer is gone for good",
		Long: `abandon closes a lease that the broker tries to end again and again, because its
issuer is gone for good. It never counts as revoked: what its credential can
still do is not known. Operators do it, by the admin socket, and people whom
policy lets revoke; the reason is kept in the log.`,
		Example: `  broker leases abandon lse_0658sg2b7puh5u0qv0s9k8g6nk --why "the cluster was deleted"
  broker leases abandon lse_0658sg2b7puh5u0qv0s9k8g6nk --why "the cluster was deleted" --as-person`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.asOperator(c.Context(), socket, adminWait, func(ctx context.Context, client *api.Client) error {
				l, err := client.Abandon(ctx, args[0], why)
				if err != nil {
					return err
				}
				return a.print(l, func(w io.Writer) { fmt.Fprintf(w, "lease\t%s\nstatus\t%s\n", l.ID, l.Status) })
			})
		},
	}
	takesID(c, "lease")
	a.adminSocketFlag(c, &socket)
	a.client.addOperator(c)
	c.Flags().StringVar(&why, "why", "", "the reason, kept in the log")
	return c
}

func writeLeases(w io.Writer, page *api.LeasePage) {
	if len(page.Leases) == 0 {
		fmt.Fprintln(w, "no leases")
		return
	}
	fmt.Fprintln(w, "LEASE\tSTATUS\tENTITLEMENT\tSCOPES\tHOLDER\tEXPIRES")
	for _, l := range page.Leases {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.ID, l.Status, l.Entitlement, strings.Join(l.Scopes, " "), l.Holder, clock(l.ExpiresAt))
	}
	if page.Next != "" {
		fmt.Fprintf(w, "more: --cursor %s\n", page.Next)
	}
}

func (a *app) renewCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "renew LEASE",
		Short: "Get a new credential under the same grant; the old one ends",
		Long: `renew decides anew and gives a credential with its full time, as long as the
grant lasts. The old credential's lease ends.`,
		Example: `  broker renew lse_0658sg2b7puh5u0qv0s9k8g6nk`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.session(c.Context(), func(ctx context.Context, client *api.Client) error {
				credential, err := client.Renew(ctx, args[0])
				if err != nil {
					return err
				}
				return a.handOver(client, credential, a.printCredential)
			})
		},
	}
	takesID(c, "lease")
	a.client.addPerson(c)
	return c
}

func (a *app) returnCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "return LEASE",
		Short: "Give a credential back before its time",
		Example: `  broker return lse_0658sg2b7puh5u0qv0s9k8g6nk
  broker return lse_0658sg2b7puh5u0qv0s9k8g6nk --why "done"`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.operatorSession(c.Context(), func(ctx context.Context, client *api.Client) error {
				l, err := client.Revoke(ctx, args[0], reason)
				if err != nil {
					return err
				}
				return a.print(l, func(w io.Writer) {
					fmt.Fprintf(w, "lease\t%s\n", l.ID)
					fmt.Fprintf(w, "status\t%s\n", l.Status)
					fmt.Fprintf(w, "truth\t%s\n", revocationTruth(l, time.Now()))
				})
			})
		},
	}
	takesID(c, "lease")
	c.Flags().StringVar(&reason, "why", "", "a reason, kept in the log")
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

// revocationTruth says when a credential stops working.
func revocationTruth(l *api.Lease, now time.Time) string {
	switch l.Revocation {
	case "immediate":
		return "it has stopped working"
	case "pending":
		return "its issuer has not confirmed yet; the broker keeps trying"
	case "at_expiry":
		if !now.Before(l.ExpiresAt) {
			return "its time was over at " + clock(l.ExpiresAt)
		}
		if l.Type != "" && l.Type != "bearer" {
			return "only time ends it: it works until " + clock(l.ExpiresAt)
		}
		return "introspection says inactive at once; who verifies it by key alone accepts it until " + clock(l.ExpiresAt)
	case "at_rotation":
		if !l.WorksUntil.IsZero() && !now.Before(l.WorksUntil) {
			return "its issuer was due to rotate it at " + clock(l.WorksUntil)
		}
		if !l.WorksUntil.IsZero() {
			return "it works until its issuer rotates it, at " + clock(l.WorksUntil)
		}
		return "it works until its issuer rotates it"
	}
	return "it can't be ended"
}

func (a *app) entitlementsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "entitlements",
		Short:   "List what you may ask for, and what each demands",
		Example: `  broker entitlements`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.session(c.Context(), func(ctx context.Context, client *api.Client) error {
				offers, err := client.Entitlements(ctx)
				if err != nil {
					return err
				}
				return a.print(api.Offers{Entitlements: offers}, func(w io.Writer) { writeOffers(w, offers) })
			})
		},
	}
	a.client.addPerson(c)
	return c
}

func writeOffers(w io.Writer, offers []api.Offer) {
	if len(offers) == 0 {
		fmt.Fprintln(w, "nothing: policy permits you no entitlement")
		return
	}
	fmt.Fprintln(w, "ENTITLEMENT\tSCOPE\tALLOWED\tDEMANDS\tMEANS")
	for _, o := range offers {
		if o.Decision != nil {
			fmt.Fprintf(w, "%s\t-\t%s\t%s\t%s\n", o.Entitlement, allowed(o.Decision.Permit, false, o.Blocked), demands(o.Decision, o.MaxTTL), plainly(o.Description))
		}
		for _, s := range o.Scopes {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", o.Entitlement, s.Scope, allowed(s.Decision.Permit, s.BreakGlassOnly, o.Blocked), demands(&s.Decision, o.MaxTTL), plainly(s.Description))
		}
	}
}

// allowed says whether policy permits something, or keeps it for emergencies, and
// the kill switch does not stand on it.
func allowed(permit, glass, blocked bool) string {
	switch {
	case blocked && (permit || glass):
		return "blocked"
	case permit:
		return "yes"
	case glass:
		return "emergency"
	}
	return "no"
}

// demands says in few words what a permit demands.
func demands(d *api.Decision, most api.Duration) string {
	if !d.Permit {
		return strings.Join(d.Reasons, "; ")
	}
	var list []string
	if o := d.Obligations; o != nil {
		for _, n := range o.Approvals {
			list = append(list, fmt.Sprintf("%d of %s", n.Count, n.Group))
		}
		if o.Justification {
			list = append(list, "a justification")
		}
		if len(o.Tickets) > 0 {
			list = append(list, "a ticket")
		}
		for _, l := range o.Limits {
			list = append(list, fmt.Sprintf("at most %d per %s", l.Count, l.Per))
		}
		if o.MaxActive > 0 {
			list = append(list, fmt.Sprintf("at most %d at once", o.MaxActive))
		}
		if o.MaxTTL > 0 {
			most = min(most, o.MaxTTL)
		}
	}
	return strings.Join(append(list, "ttl up to "+most.String()), ", ")
}

func (a *app) whoamiCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "whoami",
		Short:   "Say who the broker takes you for",
		Example: `  broker whoami`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.session(c.Context(), func(ctx context.Context, client *api.Client) error {
				who, err := client.WhoAmI(ctx)
				if err != nil {
					return err
				}
				return a.print(who, func(w io.Writer) {
					fmt.Fprintf(w, "id\t%s\n", who.ID)
					fmt.Fprintf(w, "kind\t%s\n", who.Kind)
					if who.Team != "" {
						fmt.Fprintf(w, "team\t%s\n", who.Team)
					}
					if len(who.Accountable) > 0 {
						fmt.Fprintf(w, "accountable\t%s\n", strings.Join(who.Accountable, ", "))
					}
					if who.Blocked {
						fmt.Fprintln(w, "blocked\tnothing is issued to you, until an operator lifts that")
					}
					fmt.Fprintf(w, "proof\t%s, until %s\n", who.Proof.Method, clock(who.Proof.ExpiresAt))
				})
			})
		},
	}
	a.client.addPerson(c)
	return c
}
