package server

import (
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Memberships that are credentials.

func toMembership(m *broker.Membership) api.Membership {
	out := api.Membership{
		ID: audit.Digest(m.ID).String(), Issuer: m.Issuer, System: m.System, Group: m.Group, Member: m.Member, Holder: m.Holder,
		Existing: m.Existing, AddedAt: utc(m.Added), RemovedAt: utc(m.Removed), Difference: string(m.Difference), Since: utc(m.Since),
	}
	for _, lease := range m.Claims {
		out.Leases = append(out.Leases, lease.String())
	}
	return out
}

func parseMembershipID(text string) (id broker.MembershipID, err error) {
	var digest audit.Digest
	err = digest.UnmarshalText([]byte(text))
	return broker.MembershipID(digest), err
}

// membershipID returns the membership that the path names.
func (c *call) membershipID() (broker.MembershipID, error) {
	id, err := parseMembershipID(c.r.PathValue("id"))
	if err != nil {
		return id, refuse(broker.ErrNotFound, "there is no such membership, or you may not view it")
	}
	return id, nil
}

func (s *Server) listMemberships(c *call) (reply, error) {
	q := broker.MembershipQuery{Holder: c.query.get("holder"), Issuer: c.query.get("issuer")}
	var err error
	if q.After, err = cursor(c, parseMembershipID); err != nil {
		return reply{}, err
	}
	if q.Limit, err = c.limit(); err != nil {
		return reply{}, err
	}
	switch c.query.get("differs") {
	case "", "false":
	case "true":
		q.Differs = true
	default:
		return reply{}, refuse(broker.ErrInvalidRequest, "differs must be true or false")
	}
	page, next, err := s.cfg.Memberships.List(c.r.Context(), c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	out := api.MembershipPage{Memberships: make([]api.Membership, len(page))}
	for i, m := range page {
		out.Memberships[i] = toMembership(m)
	}
	if next != (broker.MembershipID{}) {
		out.Next = audit.Digest(next).String()
	}
	return ok(out)
}

func (s *Server) acceptMembership(c *call, body api.Revocation) (reply, error) {
	id, err := c.membershipID()
	if err != nil {
		return reply{}, err
	}
	m, err := s.cfg.Memberships.Accept(c.r.Context(), c.caller(), id, body.Reason)
	if err != nil {
		return reply{}, err
	}
	return ok(toMembership(m))
}

// membershipsPage is the page of memberships.
type membershipsPage struct {
	Memberships []api.Membership
	Holder      string
	Differs     bool
	Later       bool // memberships before these exist
	Next        string
	Done        string
	MayAccept   bool
}

// membershipsPage shows memberships, those that differ first.
func (s *Server) membershipsPage(c *call) (reply, error) {
	query := c.r.URL.Query()
	p := membershipsPage{Holder: query.Get("holder"), Differs: query.Has("differs")}
	if query.Get("done") == "accepted" {
		p.Done = "The membership stays as it is."
	}
	return s.showMemberships(c, p)
}

func (s *Server) showMemberships(c *call, p membershipsPage) (reply, error) {
	p.MayAccept = s.cfg.Broker.May(c.r.Context(), c.caller(), broker.ActionOperate)
	q := broker.MembershipQuery{Holder: p.Holder, Differs: p.Differs, Limit: listRows}
	if text := c.r.URL.Query().Get("after"); text != "" {
		var err error
		if q.After, err = parseMembershipID(text); err != nil {
			return reply{}, refuse(broker.ErrInvalidRequest, "the link to this page is damaged")
		}
		p.Later = true
	}
	page, next, err := s.cfg.Memberships.List(c.r.Context(), c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	for _, m := range page {
		p.Memberships = append(p.Memberships, toMembership(m))
	}
	if next != (broker.MembershipID{}) {
		p.Next = audit.Digest(next).String()
	}
	return c.page("memberships", "Memberships", "leases", p)
}

// acceptOnPage accepts a difference.
func (s *Server) acceptOnPage(c *call) (reply, error) {
	id, err := c.membershipID()
	if err != nil {
		return reply{}, err
	}
	if _, err := s.cfg.Memberships.Accept(c.r.Context(), broker.Self(c.who, time.Now()), id, c.text("reason")); err != nil {
		return reply{}, err
	}
	return c.redirect(s.to("/ui/memberships?done=accepted"))
}

// joins reports whether an entitlement is a membership.
func (s *Server) joins() bool {
	for _, e := range s.cfg.Broker.Rules().Catalogue {
		if e.Persists {
			return true
		}
	}
	return false
}

// A joinPart is what a request's page shows about a membership: the requester joins
// there, because nothing secret is handed over.
type joinPart struct {
	CanJoin bool
	Member  bool   // a lease relies on the membership
	Group   string // what the credential is a membership of
}

// joinOf returns the part for a request.
func (s *Server) joinOf(c *call, r *broker.Request, leases []*broker.Lease) joinPart {
	e := s.cfg.Broker.Rules().Catalogue[r.Entitlement]
	if e == nil || !e.Persists || r.Requester.ID != c.who.ID {
		return joinPart{}
	}
	p := joinPart{Group: e.Name, CanJoin: r.State(c.now) == broker.RequestApproved && !c.now.Before(r.Starts())}
	for _, l := range leases {
		if state := l.State(c.now); state == broker.LeaseActive || state == broker.LeaseIssuing {
			p.CanJoin, p.Member = false, true
		}
	}
	return p
}

// join collects a membership for the form of a request's page.
func (s *Server) join(c *call, r *broker.Request) error {
	e := s.cfg.Broker.Rules().Catalogue[r.Entitlement]
	if e == nil || !e.Persists {
		return refuse(broker.ErrInvalidRequest, "only a membership can be collected on a page: collect other credentials in the terminal where you use them")
	}
	_, err := s.cfg.Broker.Collect(c.r.Context(), c.caller(), r.ID, broker.IdempotencyKey{})
	return err
}
