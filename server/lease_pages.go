package server

import (
	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// The page of leases.

type leasesPage struct {
	Leases      []api.Lease
	Next        string
	Holder      string
	Entitlement string
	All         bool // including ended leases
	MayKill     bool // shows the links to the kill switch
}

func (s *Server) leasesPage(c *call) (reply, error) {
	ctx, b, query := c.r.Context(), s.cfg.Broker, c.r.URL.Query()
	p := leasesPage{Holder: query.Get("holder"), Entitlement: query.Get("entitlement"), All: query.Has("all")}
	q := broker.LeaseQuery{Holder: broker.Everyone, Entitlement: p.Entitlement, Live: !p.All, Now: c.now}
	if p.Holder != "" {
		q.Holder = p.Holder
	}
	if text := query.Get("before"); text != "" {
		var err error
		if q.Before, err = broker.ParseLeaseID(text); err != nil {
			return reply{}, err
		}
	}
	page, next, err := b.Leases(ctx, c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	p.Next = next.String()
	for _, l := range page {
		p.Leases = append(p.Leases, toLease(l, c.now))
	}
	p.MayKill = b.May(ctx, c.caller(), broker.ActionBlock)
	return c.page("leases", "Leases", "leases", p)
}
