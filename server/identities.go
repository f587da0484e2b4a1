package server

import (
	"bytes"
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
)

// The inventory: who called or is named, what they may request, and what they used.

// identityParameters are the parameters of a list.
var identityParameters = []string{"q", "kind", "team", "problem", "cursor", "limit"}

// identityFilter reads the filter of a list.
func (c *call) identityFilter() (f inventory.Filter, err error) {
	f = inventory.Filter{Words: c.query.get("q"), Kind: broker.Kind(c.query.get("kind")), Team: c.query.get("team"), Problem: c.query.get("problem"), After: c.query.get("cursor")}
	if err := checkSearch(f.Words); err != nil {
		return f, err
	}
	switch {
	case !slices.Contains([]broker.Kind{"", broker.KindWorkload, broker.KindAgent, broker.KindPerson}, f.Kind):
		return f, refuse(broker.ErrInvalidRequest, "kind must be workload, agent or person")
	case f.Problem != "" && f.Problem != inventory.AnyProblem && !slices.Contains(inventory.ProblemCodes(), inventory.ProblemCode(f.Problem)):
		return f, refuse(broker.ErrInvalidRequest, "there is no problem "+strconv.Quote(f.Problem)+": use any, or the code of a problem")
	case len(f.Team) > maxSearchText || len(f.After) > maxSearchText:
		return f, refuse(broker.ErrInvalidRequest, "team and cursor have at most 2048 characters")
	}
	f.Limit, err = c.limit()
	return f, err
}

// listIdentities returns a page of the inventory.
func (s *Server) listIdentities(c *call) (reply, error) {
	page, err := s.identityPage(c)
	if err != nil {
		return reply{}, err
	}
	return ok(page)
}

// exportIdentities returns a page of the inventory as CSV. The header Link names the next
// page (RFC 8288).
func (s *Server) exportIdentities(c *call) (reply, error) {
	page, err := s.identityPage(c)
	if err != nil {
		return reply{}, err
	}
	var body bytes.Buffer
	if err := api.WriteIdentities(&body, page.Identities, c.query.get("cursor") == ""); err != nil {
		return reply{}, err
	}
	header := http.Header{"Content-Disposition": {`attachment; filename="identities.csv"`}}
	if page.Next != "" {
		query := c.r.URL.Query()
		query.Set("cursor", page.Next)
		header.Set("Link", "<"+s.to(c.r.URL.Path)+"?"+query.Encode()+`>; rel="next"`)
	}
	return reply{status: http.StatusOK, body: body.Bytes(), mediaType: "text/csv; charset=utf-8", header: header}, nil
}

func (s *Server) identityPage(c *call) (*api.IdentityPage, error) {
	f, err := c.identityFilter()
	if err != nil {
		return nil, err
	}
	page, err := s.cfg.Inventory.List(c.r.Context(), c.caller(), f)
	if err != nil {
		return nil, err
	}
	out := &api.IdentityPage{Identities: make([]api.KnownIdentity, len(page.Identities)), Next: page.Next, Uncounted: page.Behind}
	for n, i := range page.Identities {
		out.Identities[n] = toKnown(i, c.now)
	}
	return out, nil
}

// getIdentity returns one identity of the inventory.
func (s *Server) getIdentity(c *call) (reply, error) {
	d, err := s.cfg.Inventory.Identity(c.r.Context(), c.caller(), c.query.get("id"))
	if err != nil {
		return reply{}, err
	}
	return ok(toDetail(d, c.now))
}

// unused returns what the rules permit and no one used.
func (s *Server) unused(c *call) (reply, error) {
	since := c.now.AddDate(0, 0, -90)
	if text := c.query.get("since"); text != "" {
		var err error
		if since, err = time.Parse(time.RFC3339, text); err != nil || !since.Before(c.now) {
			return reply{}, refuse(broker.ErrInvalidRequest, "since must be a time in the past, such as 2026-09-01T00:00:00Z")
		}
	}
	u, err := s.cfg.Inventory.Unused(c.r.Context(), c.caller(), since)
	if err != nil {
		return reply{}, err
	}
	return ok(toUnused(u))
}

// toKnown converts an identity.
func toKnown(i *inventory.Identity, now time.Time) api.KnownIdentity {
	k := api.KnownIdentity{
		ID: i.ID, Kind: string(i.Kind), Mark: i.Mark, Team: i.Team, Accountable: i.Accountable, Accounts: i.Accounts, Suppliers: i.Suppliers, Sponsor: i.Sponsor,
		Marks:  api.Marks{Purpose: i.Purpose, Model: i.Model, Ceiling: toCeiling(i.Ceiling)},
		EndsAt: i.Ends, Ended: i.Ended, Named: i.Named, LastUsed: i.LastUsed(), Requestable: i.Permitted, Used: i.Used,
		Credentials30: i.Credentials(30, now), Credentials90: i.Credentials(90, now), LiveLeases: i.Live, NextReview: i.NextReview,
	}
	if s := i.Seen; s != nil {
		k.FirstSeen, k.LastSeen, k.DeniedRequests = s.Records.First, s.Records.Last, s.Denied.N
		k.Attested, k.Places = s.Methods.Names(), s.Places.Since(now.AddDate(0, 0, -1))
	}
	for _, p := range i.Problems {
		k.Problems = append(k.Problems, api.IdentityProblem{Code: string(p.Code), Text: p.Text})
	}
	return k
}

// toDetail converts an identity with its permits and its use.
func toDetail(d *inventory.Detail, now time.Time) api.KnownIdentity {
	k := toKnown(&d.Identity, now)
	k.MorePermits = d.MorePermits
	requestable := map[[2]string]bool{}
	for _, p := range d.Permits {
		known := api.KnownPermit{Reason: p.Reason, BreakGlass: p.BreakGlass}
		if d.Whole {
			known.Policy, known.File, known.Line = p.ID, p.File, p.Line
		}
		for _, r := range p.Reaches {
			known.Reaches = append(known.Reaches, api.KnownReach{Entitlement: r.Entitlement, Scopes: r.Scopes})
			for _, scope := range inventory.ScopesOf(r) {
				requestable[[2]string{r.Entitlement, scope}] = true
			}
		}
		k.Permits = append(k.Permits, known)
	}
	for _, part := range d.Parts() {
		u := d.Uses[part.Entitlement].Part(part.Scope)
		k.Uses = append(k.Uses, api.KnownUse{
			Entitlement: part.Entitlement, Scope: part.Scope, Requestable: requestable[[2]string{part.Entitlement, part.Scope}],
			LastAsked: u.Asked.Last, LastUsed: u.Issued.Last, Credentials: u.Issued.N,
		})
	}
	if d.Seen != nil {
		for address, at := range d.Seen.Places {
			k.RecentAddresses = append(k.RecentAddresses, api.KnownAddress{Address: address.String(), LastSeen: time.UnixMilli(at).UTC()})
		}
		slices.SortFunc(k.RecentAddresses, func(a, b api.KnownAddress) int {
			return cmp.Or(b.LastSeen.Compare(a.LastSeen), cmp.Compare(a.Address, b.Address))
		})
	}
	return k
}

// toUnused converts what was not used.
func toUnused(u *inventory.Unused) *api.UnusedReport {
	out := &api.UnusedReport{
		Since: u.Since.UTC(), LogFrom: u.From, Revision: u.Revision, Unmeasured: u.Unmeasured, Uncounted: u.Behind,
		Permits: []api.UnusedThing{}, Scopes: []api.UnusedThing{}, Entitlements: []api.UnusedThing{}, Members: []api.UnusedMember{},
	}
	for _, p := range u.Permits {
		out.Permits = append(out.Permits, api.UnusedThing{Policy: p.ID, File: p.File, Line: p.Line, LastUsed: p.Used, New: p.New})
	}
	for _, s := range u.Scopes {
		out.Scopes = append(out.Scopes, api.UnusedThing{Policy: s.Policy, Entitlement: s.Entitlement, Scope: s.Scope, LastUsed: s.Used, New: s.New})
	}
	for _, e := range u.Entitlements {
		out.Entitlements = append(out.Entitlements, api.UnusedThing{Entitlement: e.Entitlement, Scope: e.Scope, LastUsed: e.Used, New: e.New})
	}
	for _, m := range u.Members {
		out.Members = append(out.Members, api.UnusedMember{Group: m.Group, Member: m.Member, LastUsed: m.Used, New: m.New})
	}
	return out
}
