package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// The pages of the viewer's own access, and of what can be requested.

type accessPage struct {
	Requests     []requestView
	Later        bool // newer requests than these exist
	NextRequests string
	Leases       []leaseView
	MoreLeases   bool
	Done         string
	Acting       []requestView // on the viewer's behalf, the newest
	Joins        bool          // some entitlements are memberships
}

// access shows the viewer's own requests and live leases.
func (s *Server) access(c *call) (reply, error) {
	ctx, b := c.r.Context(), s.cfg.Broker
	before, err := pageCursor(c)
	if err != nil {
		return reply{}, err
	}
	requests, next, err := b.Requests(ctx, c.caller(), broker.RequestQuery{Now: c.now, Before: before, Limit: 20})
	if err != nil {
		return reply{}, err
	}
	leases, more, err := b.Leases(ctx, c.caller(), broker.LeaseQuery{Live: true, Now: c.now, Limit: 20})
	if err != nil {
		return reply{}, err
	}
	p := accessPage{Requests: s.viewAll(c, requests), Later: !before.IsZero(), NextRequests: next.String(), MoreLeases: !more.IsZero(), Joins: s.joins()}
	if c.who.Kind == broker.KindPerson {
		acting, _, err := b.Requests(ctx, c.caller(), broker.RequestQuery{Requester: broker.Everyone, Subject: c.who.ID, Now: c.now, Limit: 20})
		if err != nil {
			return reply{}, err
		}
		if p.Acting, err = s.viewActing(c, acting); err != nil {
			return reply{}, err
		}
	}
	for _, l := range leases {
		p.Leases = append(p.Leases, viewLease(l, c.now))
	}
	if c.r.URL.Query().Get("done") == "returned" {
		p.Done = "You returned the credential."
	}
	return c.page("access", "My access", "access", p)
}

// viewActing shows what is done on the viewer's behalf, and whether it can still be ended.
func (s *Server) viewActing(c *call, list []*broker.Request) (views []requestView, err error) {
	for _, r := range list {
		v := s.view(c, r)
		var leases []*broker.Lease
		if v.Grant != nil && v.Grant.ExpiresAt.After(c.now) {
			if leases, err = s.cfg.Broker.LeasesOf(c.r.Context(), c.caller(), r); err != nil {
				return nil, err
			}
		}
		v.CanEnd = s.canEnd(c, r, leases)
		views = append(views, v)
	}
	return views, nil
}

// canEnd reports whether the viewer may end what a request on their behalf led to.
func (s *Server) canEnd(c *call, r *broker.Request, leases []*broker.Lease) bool {
	if !broker.CanEnd(s.cfg.Broker, c.caller(), r) {
		return false
	}
	state := r.State(c.now)
	return state == broker.RequestPending || state == broker.RequestApproved ||
		slices.ContainsFunc(leases, func(l *broker.Lease) bool { return l.State(c.now) == broker.LeaseActive })
}

// pageCursor reads the position of a page of requests.
func pageCursor(c *call) (id broker.RequestID, err error) {
	if text := c.r.URL.Query().Get("before"); text != "" {
		id, err = broker.ParseRequestID(text)
	}
	return id, err
}

type offersPage struct {
	Offers []api.Offer
	Total  int // without the search
	Search string
	Page   listPage
	Query  string // begins the links to other pages
}

// offersPage shows what the viewer may request.
func (s *Server) offersPage(c *call) (reply, error) {
	offers, err := s.cfg.Broker.Entitlements(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	query := c.r.URL.Query()
	p := offersPage{Search: strings.TrimSpace(query.Get("q")), Total: len(offers)}
	if err := checkSearch(p.Search); err != nil {
		return reply{}, err
	}
	offers, p.Page = cutPage(searchOffers(offers, p.Search), query.Get("from"))
	if p.Search != "" {
		p.Query = url.Values{"q": {p.Search}}.Encode() + "&"
	}
	for _, o := range offers {
		p.Offers = append(p.Offers, toOffer(o))
	}
	return c.page("entitlements", "Entitlements", "entitlements", p)
}

type askPage struct {
	api.Offer
	Failed string
	Form   form
}

// askPage shows the form for a request.
func (s *Server) askPage(c *call) (reply, error) { return s.showAsk(c, http.StatusOK, askPage{}) }

func (s *Server) showAsk(c *call, status int, p askPage) (reply, error) {
	offers, err := s.cfg.Broker.Entitlements(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	i := slices.IndexFunc(offers, func(o broker.Offer) bool { return o.Entitlement.Name == c.r.PathValue("name") })
	if i < 0 {
		return reply{}, refuse(broker.ErrNotFound, "you may not request an entitlement of this name, or it does not exist")
	}
	p.Offer = toOffer(offers[i])
	return c.pageOf(status, ui.Page{Name: "ask", Title: "Request " + p.Entitlement, Tab: "entitlements", Data: p})
}

// fileAsk files the request of a form.
func (s *Server) fileAsk(c *call) (reply, error) {
	ask, err := c.formAsk()
	var r *broker.Request
	if err == nil {
		r, err = s.cfg.Broker.Ask(c.r.Context(), c.caller(), ask, broker.IdempotencyKey{})
	}
	if err == nil {
		return c.redirect(s.to("/ui/requests/" + r.ID.String() + "?done=asked"))
	}
	m := errorRowOf(err)
	if m.fault == serverFault || m.status == http.StatusUnauthorized {
		return reply{}, err
	}
	problem := c.problemOf(err)
	answer, rendering := s.showAsk(c, m.status, askPage{Failed: strings.Join(append([]string{problem.Detail}, problem.Reasons...), " "), Form: c.form})
	answer.code = problem.Code
	return answer, rendering
}

func (c *call) formAsk() (ask broker.Ask, err error) {
	ask = broker.Ask{
		Entitlement: c.r.PathValue("name"), Justification: c.text("why"), Ticket: strings.TrimSpace(c.form.get("ticket")),
		BreakGlass: c.form.get("break_glass") != "", SourceIP: c.from,
	}
	for name := range c.form {
		if scope, ok := strings.CutPrefix(name, "scope."); ok {
			ask.Scopes = append(ask.Scopes, scope)
		}
		if parameter, ok := strings.CutPrefix(name, "param."); ok {
			if ask.Parameters == nil {
				ask.Parameters = map[string]string{}
			}
			ask.Parameters[parameter] = c.text(name)
		}
	}
	if ask.TTL, err = c.shorter("ttl", 0); err != nil {
		return ask, err
	}
	ask.Duration, err = c.shorter("duration", 0)
	return ask, err
}

// endLeasePage returns the viewer's own lease or revokes another holder's.
func (s *Server) endLeasePage(c *call) (reply, error) {
	id, err := broker.ParseLeaseID(c.r.PathValue("id"))
	if err != nil {
		return reply{}, err
	}
	c.about = id.String()
	l, err := s.cfg.Broker.Revoke(c.r.Context(), broker.Self(c.who, time.Now()), id, c.text("reason"))
	if err != nil {
		return reply{}, err
	}
	if l.Holder == c.who.ID {
		return c.redirect(s.to("/ui/access?done=returned"))
	}
	return c.redirect(s.to("/ui/requests/" + l.Request.String()))
}
