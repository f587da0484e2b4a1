package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/broker"
)

// Unused is what the rules in force permit and no one used in a period. Only what is
// recorded can be used: requests, credentials, approvals and reviews. So permits on other
// actions, and memberships that such permits or a forbid name, are not part of it.
type Unused struct {
	Since        time.Time // the start of the period
	From         time.Time // since when the log has records, if that is later
	Revision     string
	Permits      []UnusedPermit
	Scopes       []UnusedScope
	Entitlements []UnusedEntitlement
	Members      []UnusedMember
	Unmeasured   []string // groups whose use is not recorded, sorted
	Behind       int64    // records that are not counted yet
}

// Last is when something was last used before the period; zero: never. New means that it
// was not part of the rules at the start of the period, so that it may have had no
// occasion yet.
type Last struct {
	Used time.Time
	New  bool
}

// An UnusedPermit is a permit on requests that permitted none.
type UnusedPermit struct {
	*broker.Permit
	Last
}

// An UnusedScope is a scope that a permit permits and that no one got by it, although the
// permit was used.
type UnusedScope struct {
	Policy, Entitlement, Scope string
	Last
}

// An UnusedEntitlement is an entitlement, or one of its scopes, that no one got.
type UnusedEntitlement struct {
	Entitlement string
	Scope       string // empty: all of it
	Last
}

// An UnusedMember is a membership that a group lists and that neither a permit nor a vote
// needed.
type UnusedMember struct {
	Group, Member string
	Last
}

// RulesAt are the rules that were in force at a time: the content of their files by name.
type RulesAt struct {
	From  time.Time // since when the log has records
	Files map[string][]byte
}

// Unused returns what was not used since a time, to those who may see the inventory.
func (v *Inventory) Unused(ctx context.Context, caller broker.Caller, since time.Time) (*Unused, error) {
	if err := v.checkMayList(ctx, caller); err != nil {
		return nil, err
	}
	rules := v.cfg.Broker.Rules()
	lister, ok := rules.Policy.(broker.PermitLister)
	if !ok {
		return nil, fmt.Errorf("%w: the policy does not list its permits", broker.ErrUnavailable)
	}
	u := &unusedSearch{Unused: Unused{Since: since, Revision: rules.Revision.String()}, rules: rules, permits: lister.AllPermits()}
	var err error
	if u.before, err = v.cfg.Store.RulesAt(ctx, since); err != nil {
		return nil, err
	}
	u.From = u.before.From
	if _, u.Behind, err = v.cfg.Store.Surveyed(ctx); err != nil {
		return nil, err
	}
	if u.policies, err = v.cfg.Store.PolicyUses(ctx); err != nil {
		return nil, err
	}
	if u.entitlements, err = v.cfg.Store.EntitlementUses(ctx); err != nil {
		return nil, err
	}
	u.findPermits()
	u.findEntitlements()
	u.Unmeasured = lister.UnmeasuredGroups()
	if err := v.findMembers(ctx, u); err != nil {
		return nil, err
	}
	return &u.Unused, nil
}

// An unusedSearch finds what was not used.
type unusedSearch struct {
	Unused
	rules                  *broker.Rules
	permits                []*broker.Permit
	before                 RulesAt
	policies, entitlements map[string]*Use
}

func (u *unusedSearch) findPermits() {
	had := u.before.policies()
	for _, p := range u.permits {
		use := u.policies[p.ID]
		switch {
		case p.BreakGlass: // its purpose is that it is not used
		case !use.Part("").Since(u.Since):
			u.Permits = append(u.Permits, UnusedPermit{p, Last{use.Part("").Last(), !had[p.ID]}})
		default:
			u.findScopes(p, use, !had[p.ID])
		}
	}
}

// findScopes finds scopes that a permit permits and that were not used.
func (u *unusedSearch) findScopes(p *broker.Permit, use *Use, isNew bool) {
	for _, r := range p.Reaches {
		for _, scope := range r.Scopes {
			if last := use.Part(r.Entitlement + " " + scope); !last.Since(u.Since) {
				u.Scopes = append(u.Scopes, UnusedScope{p.ID, r.Entitlement, scope, Last{last.Last(), isNew || !u.before.hasScope(r.Entitlement, scope)}})
			}
		}
	}
}

func (u *unusedSearch) findEntitlements() {
	for _, name := range slices.Sorted(maps.Keys(u.rules.Catalogue)) {
		use := u.entitlements[name]
		if !use.Part("").Since(u.Since) {
			u.Entitlements = append(u.Entitlements, UnusedEntitlement{name, "", Last{use.Part("").Last(), !u.before.hasScope(name, "")}})
			continue
		}
		for _, scope := range u.rules.Catalogue[name].Scopes {
			if last := use.Part(scope); !last.Since(u.Since) {
				u.Entitlements = append(u.Entitlements, UnusedEntitlement{name, scope, Last{last.Last(), !u.before.hasScope(name, scope)}})
			}
		}
	}
}

// maxMembers bounds the members of groups that one search looks at.
const maxMembers = 20_000

// findMembers finds memberships that were not used. The membership of a path is used if
// one of the identities below it used it.
func (v *Inventory) findMembers(ctx context.Context, u *unusedSearch) error {
	byGroup := map[string][]string{} // permits that name the group
	for _, p := range u.permits {
		for _, g := range p.Groups {
			byGroup[g] = append(byGroup[g], p.ID)
		}
	}
	looked := 0
	for _, name := range slices.Sorted(maps.Keys(u.rules.Groups)) {
		if slices.Contains(u.Unmeasured, name) {
			continue
		}
		g := u.rules.Groups[name]
		for _, member := range slices.Concat(g.Members, g.Workloads) {
			if looked++; looked > maxMembers {
				return nil
			}
			last, err := v.membership(ctx, u, name, member, byGroup[name])
			if err != nil {
				return err
			}
			if last.Before(u.Since) {
				u.Members = append(u.Members, UnusedMember{name, member, Last{last, !u.before.hasMember(member)}})
			}
		}
	}
	return nil
}

// membership returns when a membership was last used.
func (v *Inventory) membership(ctx context.Context, u *unusedSearch, group, member string, permits []string) (last time.Time, err error) {
	ids := u.rules.People.Accounts(member)
	if strings.HasPrefix(member, spiffeScheme) {
		if ids, err = v.below(ctx, member); err != nil {
			return last, err
		}
	}
	for batch := range slices.Chunk(ids, batchSize) {
		uses, err := v.cfg.Store.Uses(ctx, batch...)
		if err != nil {
			return last, err
		}
		for _, id := range batch {
			for _, use := range uses[id] {
				for _, policy := range permits {
					last = later(last, use.Policies.Get(policy).Last())
				}
			}
			if seen, err := v.cfg.Store.Seen(ctx, id); err != nil {
				return last, err
			} else if seen != nil {
				last = later(last, seen.Votes.Get(group).Last)
			}
		}
		if !last.Before(u.Since) {
			break
		}
	}
	return last, nil
}

// below returns the identities that records name at or below a path, as many as one page.
func (v *Inventory) below(ctx context.Context, path string) (ids []string, err error) {
	page, err := v.cfg.Store.Identities(ctx, Query{After: path + "/", Until: path + "0", Limit: maxMembers}) // 0 follows /
	for _, s := range page {
		ids = append(ids, s.ID)
	}
	return append(ids, path), err
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// The files of rules that the start of the period had are searched as text: they may be
// from a version with other checks.

var policyID = regexp.MustCompile(`@id\(\s*"([^"]*)"\s*\)`)

// policies returns the ids of the policies.
func (r *RulesAt) policies() map[string]bool {
	ids := map[string]bool{}
	for name, text := range r.Files {
		if strings.HasSuffix(name, ".cedar") {
			for _, m := range policyID.FindAllSubmatch(text, -1) {
				ids[string(m[1])] = true
			}
		}
	}
	return ids
}

// hasScope reports whether the catalogue had a scope of an entitlement; the entitlement if
// the scope is empty.
func (r *RulesAt) hasScope(entitlement, scope string) bool {
	var catalogue map[string]struct{ Scopes []string }
	_ = json.Unmarshal(r.Files["catalogue.json"], &catalogue) // then nothing is known: all is new
	e, ok := catalogue[entitlement]
	return ok && (scope == "" || slices.Contains(e.Scopes, scope))
}

// hasMember reports whether a group listed the member.
func (r *RulesAt) hasMember(member string) bool {
	return bytes.Contains(r.Files["groups.yaml"], []byte(member))
}
