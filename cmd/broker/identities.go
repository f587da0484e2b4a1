package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

func (a *app) identitiesCommand() *cobra.Command {
	var f api.IdentityFilter
	var asCSV bool
	c := &cobra.Command{
		Use:   "identities [IDENTITY]",
		Short: "List who called or is named, what they may request, and what they used",
		Long: `identities lists the inventory: every workload, agent and person that called the
broker, or that the rules or a source of facts name. It shows what they may
request, what of it they used in 90 days, and their problems: orphan,
owner_left, no_owner, ended, many_places, never_used, unused and broad. With an
IDENTITY, it shows that one with its permits and its use.

It needs the action audit or operate, or the admin socket. Everyone may see
themselves and the workloads for which they are accountable.`,
		Example: `  broker identities --problem any --admin-socket /run/broker/admin.sock
  broker identities --kind agent --team support --as-person
  broker identities --csv --admin-socket /run/broker/admin.sock > identities.csv
  broker identities spiffe://acme.test/agent/triage`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("identities takes at most one identity")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				switch {
				case len(args) == 1:
					return a.showIdentity(ctx, client, args[0])
				case asCSV:
					return a.exportIdentities(ctx, client, f)
				}
				return a.listIdentities(ctx, client, f)
			})
		},
	}
	c.Flags().StringVar(&f.Kind, "kind", "", "list only workload, agent or person")
	c.Flags().StringVar(&f.Team, "team", "", "list only this team")
	c.Flags().StringVar(&f.Problem, "problem", "", "list only identities with this problem; any: with any problem")
	c.Flags().StringVar(&f.Text, "text", "", "list only identities with these words in an id, a team, an owner, a supplier or a sponsor")
	c.Flags().StringVar(&f.Cursor, "cursor", "", "continue after an earlier page")
	c.Flags().IntVar(&f.Limit, "limit", 0, "the length of a page (default 50, at most 200)")
	c.Flags().BoolVar(&asCSV, "csv", false, "write all pages as CSV")
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

var identityTable = []string{"IDENTITY", "KIND", "OWNER", "LAST SEEN", "USED", "PROBLEMS"}

func (a *app) listIdentities(ctx context.Context, client *api.Client, f api.IdentityFilter) error {
	page, err := client.Identities(ctx, f)
	if err != nil {
		return err
	}
	rows := make([][]string, len(page.Identities))
	for i := range page.Identities {
		k := &page.Identities[i]
		rows[i] = []string{printable(k.ID), k.Kind, printable(ownerOf(k)), day(k.LastSeen), fmt.Sprintf("%d/%d", k.Used, k.Requestable), strings.Join(codesOf(k.Problems), " ")}
	}
	a.noteUncounted(page.Uncounted)
	return a.printPage(page, "identities", identityTable, rows, page.Next)
}

func (a *app) noteUncounted(n int64) {
	if n > 0 {
		fmt.Fprintf(a.err, "the newest %d records of the log are not counted yet\n", n)
	}
}

func ownerOf(k *api.KnownIdentity) string {
	switch {
	case len(k.Accountable) > 0:
		return strings.Join(k.Accountable, " ")
	case k.Sponsor != "":
		return k.Sponsor
	case len(k.Suppliers) > 0:
		return strings.Join(k.Suppliers, " ")
	}
	return "-"
}

func codesOf(problems []api.IdentityProblem) (codes []string) {
	for _, p := range problems {
		codes = append(codes, p.Code)
	}
	if len(codes) == 0 {
		return []string{"-"}
	}
	return codes
}

// day returns the day of a time; a dash for never.
func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.DateOnly)
}

// exportIdentities writes all pages as CSV.
func (a *app) exportIdentities(ctx context.Context, client *api.Client, f api.IdentityFilter) error {
	f.Limit = 200
	for first := true; ; first = false {
		page, err := client.Identities(ctx, f)
		if err != nil {
			return err
		}
		if err := api.WriteIdentities(a.out, page.Identities, first); err != nil {
			return err
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			return nil
		}
	}
}

func (a *app) showIdentity(ctx context.Context, client *api.Client, id string) error {
	k, err := client.Identity(ctx, id)
	if err != nil {
		return err
	}
	return a.print(k, func(w io.Writer) {
		c := card{w}
		c.line("identity", k.ID)
		c.line("kind", k.Kind)
		c.line("team", k.Team)
		c.line("owner", strings.Join(k.Accountable, ", "))
		c.marks(&k.Marks)
		c.line("supplier", strings.Join(k.Suppliers, ", "))
		c.line("sponsor", k.Sponsor)
		c.line("ends", instant(k.EndsAt))
		c.line("ended", k.Ended)
		c.line("named in", strings.Join(k.Named, ", "))
		c.line("first seen", instant(k.FirstSeen))
		c.line("last seen", instant(k.LastSeen))
		c.line("proved by", strings.Join(k.Attested, ", "))
		c.line("credentials", fmt.Sprintf("%d in 30 days, %d in 90 days, %d live", k.Credentials30, k.Credentials90, k.LiveLeases))
		c.line("used", fmt.Sprintf("%d of %s that it may request, in 90 days", k.Used, counted(k.Requestable, "scope")))
		c.line("next review", instant(k.NextReview))
		for _, p := range k.Problems {
			c.line("problem", p.Code+": "+p.Text)
		}
		for _, p := range k.Permits {
			c.line("permit", permitText(&p))
		}
		for _, u := range k.Uses {
			c.line("use", useText(&u))
		}
	})
}

func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return clock(t)
}

func permitText(p *api.KnownPermit) string {
	var parts []string
	for _, r := range p.Reaches {
		parts = append(parts, strings.TrimSpace(r.Entitlement+" "+strings.Join(r.Scopes, " ")))
	}
	text := strings.Join(parts, "; ")
	if p.Policy != "" {
		text = p.Policy + ": " + text
	}
	if p.BreakGlass {
		text += " (break-glass)"
	}
	return text
}

func useText(u *api.KnownUse) string {
	text := strings.TrimSpace(u.Entitlement+" "+u.Scope) + ": "
	switch {
	case u.LastUsed.IsZero():
		text += "never used"
	default:
		text += counted(u.Credentials, "credential") + ", last " + day(u.LastUsed)
	}
	if !u.Requestable {
		text += ", no longer permitted"
	}
	return text
}

// sinceFlag reads the start of a period: its length, such as 90d or 12h, or a time.
func sinceFlag(text string, now time.Time) (time.Time, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n <= 36500 {
			return now.AddDate(0, 0, -n), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil && t.Before(now) {
			return t, nil
		}
	}
	return time.Time{}, usage("--since must be the length of a period, such as 90d or 12h, or a time in the past, such as 2026-09-01")
}
