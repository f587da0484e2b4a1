package server

import (
	"encoding/hex"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// vote takes a person's yes or no to a request.
func (s *Server) vote(c *call, body api.Vote) (reply, error) {
	if body.Decision != api.Approve && body.Decision != api.Deny {
		return reply{}, refuse(broker.ErrInvalidRequest, "decision is approve or deny")
	}
	id, digest, err := c.seen(body.Digest)
	if err != nil {
		return reply{}, err
	}
	v := broker.Vote{
		Approve: body.Decision == api.Approve, Digest: digest, Comment: body.Comment,
		Scopes: body.Scopes, TTL: body.TTL.Std(), Duration: body.Duration.Std(),
	}
	r, err := c.asApprover(func(caller broker.Caller) (*broker.Request, error) {
		return s.cfg.Broker.Vote(c.r.Context(), caller, id, v)
	})
	if err != nil {
		return reply{}, err
	}
	return ok(c.toRequest(r, c.now))
}

// review takes a person's verdict on a broken glass.
func (s *Server) review(c *call, body api.Finding) (reply, error) {
	if body.Verdict != api.Justified && body.Verdict != api.Unjustified {
		return reply{}, refuse(broker.ErrInvalidRequest, "verdict is justified or unjustified")
	}
	id, digest, err := c.seen(body.Digest)
	if err != nil {
		return reply{}, err
	}
	v := broker.Vote{Approve: body.Verdict == api.Justified, Digest: digest, Comment: body.Comment}
	r, err := c.asApprover(func(caller broker.Caller) (*broker.Request, error) {
		return s.cfg.Broker.Review(c.r.Context(), caller, id, v)
	})
	if err != nil {
		return reply{}, err
	}
	return ok(c.toRequest(r, c.now))
}

// seen reads what a person says it saw: the request, and its digest.
func (c *call) seen(text string) (id broker.RequestID, digest audit.Digest, err error) {
	if id, err = broker.ParseRequestID(c.r.PathValue("id")); err != nil {
		return id, digest, err
	}
	c.about = id.String()
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(digest) {
		return id, digest, refuse(broker.ErrInvalidRequest, "digest is that of the request as you saw it, 64 hexadecimal digits")
	}
	return id, audit.Digest(raw), nil
}
