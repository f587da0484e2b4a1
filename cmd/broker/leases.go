package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) leasesCommand() *cobra.Command {
	var f api.LeaseFilter
	c := &cobra.Command{
		Use:   "leases",
		Short: "List leases, newest first",
		Example: `  broker leases --live
  broker leases --holder '*' --entitlement tickets-api -o json
  broker leases --live --admin-socket /run/broker/admin.sock
  broker leases abandon lse_0658sg2b7puh5u0qv0s9k8g6nk --why "the cluster was deleted"`,
		Args: exactly(0, "no arguments, or abandon"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				page, err := client.Leases(ctx, f)
				if err != nil {
					return err
				}
				rows, subjects := make([][]string, len(page.Leases)), make([]string, len(page.Leases))
				for i, l := range page.Leases {
					subjects[i] = l.OnBehalfOf
					rows[i] = []string{l.ID, l.Status, l.Entitlement, strings.Join(l.Scopes, " "), l.Holder, clock(l.ExpiresAt)}
				}
				if a.client.admin == "" {
					a.noteCaller(ctx, client, f.Holder)
				}
				columns, rows := withSubjects(leaseColumns, rows, subjects)
				return a.printPage(page, "leases", columns, rows, page.Next)
			})
		},
	}
	c.Flags().StringVar(&f.Holder, "holder", "", "a SPIFFE ID, a person such as login/ana, or '*' for all whose leases you may view (default: you; all with --admin-socket)")
	c.Flags().StringVar(&f.Request, "request", "", "list only leases of this request")
	c.Flags().BoolVar(&f.Live, "live", false, "list only leases whose credentials may still work, including expired ones that the issuer has not ended")
	addPageFlags(c, &f.Entitlement, &f.Cursor, &f.Limit)
	a.client.addPerson(c)
	a.client.addAdmin(c)
	completes(c, "entitlement", a.completeEntitlement)
	c.AddCommand(a.abandonCommand())
	return c
}

var leaseColumns = []string{"LEASE", "STATUS", "ENTITLEMENT", "SCOPES", "HOLDER", "EXPIRES"}

func (a *app) abandonCommand() *cobra.Command {
	var socket, why string
	c := &cobra.Command{
		Use:   "abandon LEASE",
		Short: "Give up a lease whose issuer no longer exists",
		Long: `abandon closes a lease that the broker can't revoke because its issuer no longer
exists. The broker stops trying. The lease does not count as revoked, and nobody
knows whether its credential still works. Operators use the admin socket; people
whom policy permits to revoke use --as-person. The log records the reason.`,
		Example: `  broker leases abandon lse_0658sg2b7puh5u0qv0s9k8g6nk --why "the cluster was deleted"
  broker leases abandon lse_0658sg2b7puh5u0qv0s9k8g6nk --why "the cluster was deleted" --as-person`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withAdmin(c.Context(), socket, adminWait, func(ctx context.Context, client *api.Client) error {
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
	addWhy(c, &why)
	return c
}

func (a *app) renewCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "renew LEASE",
		Short: "Replace a credential with a new one under the same grant",
		Long: `renew makes a new policy decision and prints a new credential, valid for the
full time or until the grant ends. The broker revokes the old credential.`,
		Example: `  broker renew lse_0658sg2b7puh5u0qv0s9k8g6nk`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withClient(c.Context(), func(ctx context.Context, client *api.Client) error {
				credential, err := client.Renew(ctx, args[0])
				if err != nil {
					return err
				}
				return a.handOver(ctx, client, credential)
			})
		},
	}
	takesID(c, "lease")
	a.client.addCollecting(c)
	return c
}

func (a *app) returnCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "return LEASE",
		Short: "Return a credential before it expires",
		Example: `  broker return lse_0658sg2b7puh5u0qv0s9k8g6nk
  broker return lse_0658sg2b7puh5u0qv0s9k8g6nk --why "done"`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				l, err := client.Revoke(ctx, args[0], reason)
				if err != nil {
					return err
				}
				a.forgetKept(func(f *keptFile) bool { return f.Lease == l.ID })
				return a.print(l, func(w io.Writer) {
					c := card{w}
					c.line("lease", l.ID)
					c.line("status", l.Status)
					c.line("revocation", revocationEffect(l, time.Now()))
				})
			})
		},
	}
	takesID(c, "lease")
	addWhy(c, &reason)
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

// revocationEffect describes when the credential of a revoked lease stops working.
func revocationEffect(l *api.Lease, now time.Time) string {
	switch l.Revocation {
	case "immediate":
		return "the credential has stopped working"
	case "pending":
		return "the issuer has not confirmed it; the broker keeps trying"
	case "at_expiry":
		switch expires := clock(l.ExpiresAt); {
		case !now.Before(l.ExpiresAt):
			return "the credential expired at " + expires
		case l.Type != "" && l.Type != "bearer":
			return "not possible; the credential works until " + expires
		default:
			return "introspection returns inactive; servers that check only the signature accept the token until " + expires
		}
	case "at_rotation":
		switch {
		case l.WorksUntil.IsZero():
			return "the credential works until its issuer rotates it"
		case now.Before(l.WorksUntil):
			return "the credential works until its issuer rotates it at " + clock(l.WorksUntil)
		default:
			return "the issuer was due to rotate the credential at " + clock(l.WorksUntil)
		}
	}
	return "not possible"
}

func (a *app) entitlementsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "entitlements",
		Short:   "List the entitlements that you may request, and their conditions",
		Example: `  broker entitlements`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withClient(c.Context(), func(ctx context.Context, client *api.Client) error {
				offers, err := client.Entitlements(ctx)
				if err != nil {
					return err
				}
				return a.printTable(api.Offers{Entitlements: offers}, func(w io.Writer) { writeOffers(w, offers) })
			})
		},
	}
	a.client.addPerson(c)
	return c
}

func writeOffers(w io.Writer, offers []api.Offer) {
	if len(offers) == 0 {
		fmt.Fprintln(w, "no entitlements: policy permits none to you")
		return
	}
	fmt.Fprintln(w, "ENTITLEMENT\tSCOPE\tALLOWED\tCONDITIONS\tDESCRIPTION")
	for _, o := range offers {
		if o.Decision != nil {
			fmt.Fprintf(w, "%s\t-\t%s\t%s\t%s\n", o.Entitlement, allowed(o.Decision.Permit, false, o.NeedsDetails, o.Blocked), conditions(o.Decision, o.MaxTTL), printable(o.Description))
		}
		for _, s := range o.Scopes {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", o.Entitlement, s.Scope, allowed(s.Decision.Permit, s.BreakGlassOnly, s.NeedsDetails, o.Blocked), conditions(&s.Decision, o.MaxTTL), printable(s.Description))
		}
	}
}

func allowed(permit, breakGlassOnly, needsDetails, blocked bool) string {
	switch {
	case blocked && (permit || breakGlassOnly || needsDetails):
		return "blocked"
	case permit:
		return "yes"
	case needsDetails:
		return "with --detail"
	case breakGlassOnly:
		return "emergency"
	}
	return "no"
}

// conditions summarizes the obligations of a permit, or the reasons of a denial.
func conditions(d *api.Decision, maxTTL api.Duration) string {
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
		if t := ticketNeeds(o); t != "" {
			list = append(list, t)
		}
		if o.Binding != "" {
			list = append(list, "bound to "+bindings[o.Binding])
		}
		for _, l := range o.Limits {
			list = append(list, fmt.Sprintf("at most %d per %s", l.Count, l.Per))
		}
		if o.MaxActive > 0 {
			list = append(list, fmt.Sprintf("at most %d active", o.MaxActive))
		}
		if o.MaxTTL > 0 {
			maxTTL = min(maxTTL, o.MaxTTL)
		}
	}
	return strings.Join(append(list, "ttl up to "+maxTTL.String()), ", ")
}

// bindings are what a token is bound to.
var bindings = map[string]string{
	"mtls":         "a client certificate",
	"dpop":         "a key (--dpop)",
	"dpop or mtls": "a key (--dpop) or a client certificate",
	"impossible":   "demands that exclude each other",
}

// ticketNeeds summarizes the obligations on a ticket.
func ticketNeeds(o *api.Obligations) string {
	if len(o.Tickets) == 0 && !o.OnTicket() {
		return ""
	}
	text := strings.Join(append(slices.Clone(o.TicketStates), "ticket"), " ")
	if len(o.TicketAssignees) > 0 {
		text += " assigned to " + strings.ReplaceAll(strings.Join(o.TicketAssignees, " and "), ", ", " or ")
	}
	if o.ChangeWindow {
		text += " in its change window"
	}
	return article(text)
}

func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

func (a *app) whoamiCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "whoami",
		Short:   "Show the identity that the broker sees",
		Example: `  broker whoami`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withClient(c.Context(), func(ctx context.Context, client *api.Client) error {
				who, err := client.WhoAmI(ctx)
				if err != nil {
					return err
				}
				return a.print(who, func(w io.Writer) {
					fmt.Fprintf(w, "id\t%s\n", who.ID)
					fmt.Fprintf(w, "kind\t%s\n", who.Kind)
					if who.Attested == "oidc" {
						fmt.Fprintln(w, "attested\toidc: by a token of its platform, without an SVID")
					}
					if who.Team != "" {
						fmt.Fprintf(w, "team\t%s\n", who.Team)
					}
					if len(who.Accountable) > 0 {
						fmt.Fprintf(w, "owner\t%s\n", strings.Join(who.Accountable, ", "))
					}
					card{w}.marks(&who.Marks)
					if !who.EndsAt.IsZero() {
						fmt.Fprintf(w, "ends\t%s\n", clock(who.EndsAt))
					}
					if who.Blocked {
						fmt.Fprintln(w, "blocked\tnothing is issued to you until an operator lifts the block")
					}
					fmt.Fprintf(w, "proof\t%s, valid until %s\n", who.Proof.Method, clock(who.Proof.ExpiresAt))
				})
			})
		},
	}
	a.client.addPerson(c)
	return c
}
