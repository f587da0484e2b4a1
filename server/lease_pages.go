package server

import (
	"errors"
	"net/http"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// The page of leases.

type leasesPage struct {
	Leases      []api.Lease
	Next        string
	Later       bool // newer leases than these exist
	Holder      string
	HolderFault string // what is wrong with Holder
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
	p.MayKill = b.May(ctx, c.caller(), broker.ActionBlock)
	page, next, err := b.Leases(ctx, c.caller(), q)
	if errors.Is(err, broker.ErrInvalidRequest) { // a wrong name keeps the form
		p.HolderFault = c.problemOf(err).Detail
		return c.pageOf(http.StatusBadRequest, ui.Page{Name: "leases", Title: "Leases", Tab: "leases", Data: p})
	}
	if err != nil {
		return reply{}, err
	}
	p.Next, p.Later = next.String(), !q.Before.IsZero()
	for _, l := range page {
		p.Leases = append(p.Leases, toLease(l, c.now))
	}
	return c.page("leases", "Leases", "leases", p)
}
