package server

import (
	"context"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// credential returns an issued credential. Only this function and the token endpoint
// reveal secrets.
func (c *call) credential(issued *broker.Issued) (reply, error) {
	defer issued.Release()
	c.about = issued.Lease.ID.String()
	var joined *api.Joined
	if j := issued.Credential.Joined; j != nil {
		joined = &api.Joined{System: j.System, Group: j.Group}
	}
	return c.created("/v1/leases/"+c.about, api.Credential{
		Lease:       c.about,
		Request:     issued.Lease.Request.String(),
		Entitlement: issued.Lease.Entitlement,
		Scopes:      issued.Lease.Scopes,
		Type:        issued.Credential.Type,
		Secret:      issued.Credential.Secret.Reveal(),
		Membership:  joined,
		Confirm:     confirmation(issued.Lease),
		ExpiresAt:   issued.Credential.Expires.UTC(),
		Revocation:  string(issued.Lease.Revocation),
		WorksUntil:  utc(issued.Lease.WorksUntil()),
		Receipt:     api.Receipt{Index: issued.Receipt.Index, LeafHash: hexDigest(issued.Receipt.LeafHash)},
	})
}

func (s *Server) listLeases(c *call) (reply, error) {
	query := broker.LeaseQuery{Holder: c.query.get("holder"), Entitlement: c.query.get("entitlement"), Now: c.now}
	var err error
	if query.Before, err = cursor(c, broker.ParseLeaseID); err != nil {
		return reply{}, err
	}
	if query.Limit, err = c.limit(); err != nil {
		return reply{}, err
	}
	if text := c.query.get("request"); text != "" {
		if query.Request, err = broker.ParseRequestID(text); err != nil {
			return reply{}, refuse(broker.ErrInvalidRequest, "request must be a request ID")
		}
	}
	switch c.query.get("live") {
	case "", "false":
	case "true":
		query.Live = true
	default:
		return reply{}, refuse(broker.ErrInvalidRequest, "live must be true or false")
	}
	page, next, err := s.cfg.Broker.Leases(c.r.Context(), c.caller(), query)
	if err != nil {
		return reply{}, err
	}
	out := api.LeasePage{Leases: make([]api.Lease, len(page)), Next: next.String()}
	for i, l := range page {
		out.Leases[i] = toLease(l, c.now)
	}
	return ok(out)
}

func (s *Server) getLease(c *call) (reply, error) {
	id, err := c.leaseID()
	if err != nil {
		return reply{}, err
	}
	l, err := s.cfg.Broker.Lease(c.r.Context(), c.caller(), id)
	if err != nil {
		return reply{}, err
	}
	return ok(toLease(l, c.now))
}

func (s *Server) renew(c *call, _ nothing) (reply, error) {
	id, err := c.leaseID()
	if err != nil {
		return reply{}, err
	}
	key, err := c.idempotencyKey()
	if err != nil {
		return reply{}, err
	}
	issued, err := s.cfg.Broker.Renew(c.r.Context(), c.caller(), id, key)
	if err != nil {
		return reply{}, err
	}
	return c.credential(issued)
}

func (s *Server) revokeLease(c *call, body api.Revocation) (reply, error) {
	return c.endLease(body, s.cfg.Broker.Revoke)
}

func (s *Server) abandonLease(c *call, body api.Revocation) (reply, error) {
	return c.endLease(body, s.cfg.Broker.Abandon)
}

func (c *call) endLease(body api.Revocation, end func(context.Context, broker.Caller, broker.LeaseID, string) (*broker.Lease, error)) (reply, error) {
	id, err := c.leaseID()
	if err != nil {
		return reply{}, err
	}
	if len(body.Reason) > broker.MaxJustification {
		return reply{}, refuse(broker.ErrInvalidRequest, "reason is too long")
	}
	l, err := end(c.r.Context(), c.caller(), id, body.Reason)
	if err != nil {
		return reply{}, err
	}
	return ok(toLease(l, c.now))
}

func (c *call) leaseID() (broker.LeaseID, error) {
	id, err := broker.ParseLeaseID(c.r.PathValue("id"))
	c.about = id.String()
	return id, err
}
