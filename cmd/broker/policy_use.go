package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
	"accessbroker.internal/internal/config"
	"accessbroker.internal/policy"
)

func (a *app) policyUnusedCommand() *cobra.Command {
	var since string
	c := &cobra.Command{
		Use:   "unused",
		Short: "List permits, scopes, entitlements and group members that no one used",
		Long: `unused compares the rules in force with the log of the running broker. A permit
was used if it permitted a request or a credential in the period, a scope or an
entitlement if it was requested or issued, and a member of a group if a permit
that names the group, an approval or a review needed the membership.

The log does not record the use of permits on other actions than request. Groups
that such permits, a forbid or a supplier name are not judged. It needs the
action audit or operate, or the admin socket.`,
		Example: `  broker policy unused --since 90d --admin-socket /run/broker/admin.sock
  broker policy unused --since 2026-09-01 --as-person -o json`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			from, err := sinceFlag(since, time.Now())
			if err != nil {
				return err
			}
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				report, err := client.Unused(ctx, from)
				if err != nil {
					return err
				}
				a.noteReport(report)
				return a.printTable(report, func(w io.Writer) { writeUnused(w, report) })
			})
		},
	}
	c.Flags().StringVar(&since, "since", "90d", "the length of the period, such as 90d or 12h, or its start, such as 2026-09-01")
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

// noteReport warns of what limits a report.
func (a *app) noteReport(r *api.UnusedReport) {
	a.noteUncounted(r.Uncounted)
	if r.LogFrom.After(r.Since) {
		fmt.Fprintf(a.err, "the log begins at %s: what was used before that is not known\n", clock(r.LogFrom))
	}
}

// writeUnused writes what was not used.
func writeUnused(w io.Writer, r *api.UnusedReport) {
	fmt.Fprintln(w, "UNUSED\tNAME\tLAST USED")
	line := func(kind, name string, used time.Time, isNew bool) {
		last := day(used)
		if used.IsZero() {
			last = "never"
		}
		if isNew {
			last += " (new)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", kind, printable(name), last)
	}
	for _, p := range r.Permits {
		line("permit", fmt.Sprintf("%s (%s:%d)", p.Policy, p.File, p.Line), p.LastUsed, p.New)
	}
	for _, s := range r.Scopes {
		line("scope", fmt.Sprintf("%s %s by %s", s.Entitlement, s.Scope, s.Policy), s.LastUsed, s.New)
	}
	for _, e := range r.Entitlements {
		line("entitlement", strings.TrimSpace(e.Entitlement+" "+e.Scope), e.LastUsed, e.New)
	}
	for _, m := range r.Members {
		line("member", m.Member+" of "+m.Group, m.LastUsed, m.New)
	}
	if len(r.Permits)+len(r.Scopes)+len(r.Entitlements)+len(r.Members) == 0 {
		fmt.Fprintln(w, "nothing: all of it was used")
	}
	if len(r.Unmeasured) > 0 {
		fmt.Fprintf(w, "not judged, because the log does not show their use: %s\n", printable(strings.Join(r.Unmeasured, ", ")))
	}
}

func (a *app) policyProposeCommand() *cobra.Command {
	var file, since string
	c := &cobra.Command{
		Use:   "propose",
		Short: "Print a patch that removes what no one used",
		Long: `propose prints a patch for the policy folder that removes the permits and the
group members that "policy unused" lists, and narrows permits to the scopes that
were used. It never adds a right. It leaves out what was not there yet at the
start of the period, and every change after which the policies do not load or
one of their own scenarios fails. The patch is text for "git apply".

The folder is that of the operator's file, and the use that of the running
broker. Paths in the patch begin at the current folder.`,
		Example: `  broker policy propose --since 90d --config broker.yaml --admin-socket admin.sock > least.patch
  broker policy propose --config broker.yaml --as-person | git apply`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			from, err := sinceFlag(since, time.Now())
			if err != nil {
				return err
			}
			s, err := config.Load(file, a.getenv)
			if err != nil {
				return err
			}
			engine, err := s.Engine()
			if err != nil {
				return err
			}
			return a.withClientOrAdmin(c.Context(), func(ctx context.Context, client *api.Client) error {
				report, err := client.Unused(ctx, from)
				if err != nil {
					return err
				}
				a.noteReport(report)
				if report.Revision != engine.Revision().String() {
					fmt.Fprintf(a.err, "the broker runs other rules than those of %s: their use is compared by name\n", s.Policies)
				}
				return a.propose(ctx, engine, report, s.Policies)
			})
		},
	}
	configFlag(c, &file)
	c.Flags().StringVar(&since, "since", "90d", "the length of the period, such as 90d or 12h, or its start, such as 2026-09-01")
	a.client.addPerson(c)
	a.client.addAdmin(c)
	return c
}

// A proposal is the output of "policy propose".
type proposal struct {
	Since   time.Time      `json:"since"`
	Changes []string       `json:"changes"`
	Left    []leftProposal `json:"left_out,omitempty"`
	Tested  int            `json:"scenarios"` // that pass with the patch
	Patch   string         `json:"patch"`
}

type leftProposal struct {
	Change string `json:"change"`
	Why    string `json:"why"`
}

func (a *app) propose(ctx context.Context, engine *policy.Engine, report *api.UnusedReport, folder string) error {
	p, err := engine.Propose(ctx, prunes(engine, report))
	if err != nil {
		return err
	}
	out := proposal{Since: report.Since, Changes: []string{}, Tested: p.Tested}
	for _, c := range p.Made {
		out.Changes = append(out.Changes, c.String())
	}
	for _, l := range p.Left {
		out.Left = append(out.Left, leftProposal{l.String(), l.Why})
		fmt.Fprintf(a.err, "left out: %s: %s\n", printable(l.String()), printable(l.Why))
	}
	for _, f := range p.Files {
		name, err := patchPath(filepath.Join(folder, f.Name))
		if err != nil {
			return err
		}
		out.Patch += fmt.Sprintf("diff --git a/%[1]s b/%[1]s\n--- a/%[1]s\n+++ b/%[1]s\n%[2]s", name, f.Hunks)
	}
	switch {
	case len(p.Made) == 0:
		fmt.Fprintln(a.err, "there is nothing to propose")
	case p.Tested == 0:
		fmt.Fprintln(a.err, "the policies have no scenarios: check the patch with care")
	default:
		fmt.Fprintf(a.err, "%s, with which %s\n", counted(len(p.Made), "change"), passing(p.Tested))
	}
	if a.output == "json" {
		return a.print(out, nil)
	}
	for _, c := range out.Changes {
		fmt.Fprintf(a.out, "# %s\n", printable(c)) // git skips text before a patch
	}
	_, err = io.WriteString(a.out, out.Patch)
	return err
}

func passing(n int) string {
	if n == 1 {
		return "the scenario passes"
	}
	return fmt.Sprintf("all %d scenarios pass", n)
}

// patchPath returns a path as patches have it: from the current folder, with slashes.
func patchPath(path string) (string, error) {
	here, err := os.Getwd()
	if err != nil {
		return "", err
	}
	full, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	name, err := filepath.Rel(here, full)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(name, "..") {
		return "", fmt.Errorf("the policies in %s are not below the current folder: change to the folder of the repository, because git applies a patch there", path)
	}
	return filepath.ToSlash(name), nil
}

// prunes returns the changes that take away what was not used.
func prunes(engine *policy.Engine, report *api.UnusedReport) (changes []policy.Prune) {
	for _, p := range report.Permits {
		if !p.New {
			changes = append(changes, policy.Prune{Policy: p.Policy})
		}
	}
	unused := map[string]map[string]int{} // by policy and scope: of how many entitlements
	for _, s := range report.Scopes {
		if !s.New {
			if unused[s.Policy] == nil {
				unused[s.Policy] = map[string]int{}
			}
			unused[s.Policy][s.Scope]++
		}
	}
	for _, p := range engine.AllPermits() {
		granted := map[string]int{}
		for _, r := range p.Reaches {
			for _, scope := range r.Scopes {
				granted[scope]++
			}
		}
		var keep []string
		for scope, n := range granted {
			if unused[p.ID][scope] < n { // one of the entitlements needs it
				keep = append(keep, scope)
			}
		}
		if slices.Sort(keep); len(keep) > 0 && len(keep) < len(granted) && len(unused[p.ID]) > 0 {
			changes = append(changes, policy.Prune{Policy: p.ID, Keep: keep})
		}
	}
	unmeasured := engine.UnmeasuredGroups() // of the folder: the broker may run other rules
	for _, m := range report.Members {
		if !m.New && !slices.Contains(unmeasured, m.Group) {
			changes = append(changes, policy.Prune{Group: m.Group, Member: m.Member})
		}
	}
	return changes
}
