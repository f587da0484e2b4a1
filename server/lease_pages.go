package server

import (
	"errors"
	"net/http"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// The page of leases.

type leasesPage struct {
	Leases      []leaseView
	Next        string
	Later       bool // newer leases than these exist
	Holder      string
	HolderFault string // what is wrong with Holder
	Entitlement string
	All         bool // including ended leases
	MayKill     bool // shows the links to the kill switch
	Joins       bool // some entitlements are memberships
}

func (s *Server) leasesPage(c *call) (reply, error) {
	ctx, b, query := c.r.Context(), s.cfg.Broker, c.r.URL.Query()
	p := leasesPage{Holder: query.Get("holder"), Entitlement: query.Get("entitlement"), All: query.Has("all"), Joins: s.joins()}
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
		p.Leases = append(p.Leases, viewLease(l, c.now))
	}
	return c.page("leases", "Leases", "leases", p)
}

// A leaseView is a lease as lists show it, with a bar of the time that is left.
type leaseView struct {
	api.Lease
	Left     int    // in percent of its whole time
	LeftText string // empty: no bar, because the credential does not work any more
	Ended    bool   // the lease has ended or ends, and the credential may still work
}

func viewLease(l *broker.Lease, now time.Time) leaseView {
	v := leaseView{Lease: toLease(l, now)}
	switch l.State(now) {
	case broker.LeaseIssuing, broker.LeaseActive:
	case broker.LeaseRevoking, broker.LeaseStuck:
		v.Ended = true
	default:
		if v.Ended = l.OutlivesEnd(now); !v.Ended {
			return v
		}
	}
	whole, left := l.Expires.Sub(l.Opened), l.Expires.Sub(now)
	if whole <= 0 || left <= 0 {
		return v
	}
	left = min(left, whole)
	v.Left = percent(int(left), int(whole))
	v.LeftText = spoken(left) + " of " + spoken(whole) + " left"
	if v.Ended {
		v.LeftText = "may work for " + spoken(left) + " more, of " + spoken(whole)
	}
	return v
}
