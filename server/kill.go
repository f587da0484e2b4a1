package server

import (
	"net/http"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

func readSelector(s api.Selector) (broker.Selector, error) {
	out := broker.Selector{
		Holder: s.Holder, Under: s.Under, TrustDomain: s.TrustDomain, Entitlement: s.Entitlement, Issuer: s.Issuer,
	}
	var err error
	if s.Request != "" {
		out.Request, err = broker.ParseRequestID(s.Request)
	}
	return out, err
}

// kill previews the kill switch, or triggers it for what a preview showed.
func (s *Server) kill(c *call, body api.Kill) (reply, error) {
	selector, err := readSelector(body.Selector)
	if err != nil {
		return reply{}, err
	}
	if body.Preview && (body.Force || body.Unmatched || body.PreviewDigest != "") {
		return reply{}, refuse(broker.ErrInvalidRequest, "send preview, or preview_digest, force and unmatched, not both")
	}
	c.extend(broker.KillDeadline) // on every listener
	if body.Preview {
		preview, err := s.cfg.Broker.Preview(c.r.Context(), c.caller(), selector)
		if err != nil {
			return reply{}, err
		}
		return ok(toKillPreview(preview))
	}
	var seen audit.Digest
	if !body.Force && seen.UnmarshalText([]byte(body.PreviewDigest)) != nil {
		return reply{}, refuse(broker.ErrInvalidRequest, "send the preview_digest of a preview, or force")
	}
	hit, err := s.cfg.Broker.RevokeAll(c.r.Context(), c.caller(), selector, body.Reason, broker.Consent{Seen: seen, Force: body.Force, Unmatched: body.Unmatched})
	if err != nil {
		return reply{}, err
	}
	return ok(toKillPreview(hit))
}

func toKillPreview(p *broker.Preview) api.KillPreview {
	out := api.KillPreview{
		Leases: p.Leases, Ended: p.Ended, ByIssuer: p.ByIssuer, Irrevocable: p.Irrevocable, Lasting: p.Lasting, Beyond: p.Beyond,
		More: p.More, WorkUntil: utc(p.WorkUntil), Accounts: p.Accounts, Unmatched: p.Unmatched, Near: p.Near, Below: p.Below, Digest: p.Digest.String(),
	}
	for _, l := range p.Hits {
		hit := api.KillHit{
			Lease: l.ID.String(), Holder: l.Holder, Entitlement: l.Entitlement, Issuer: l.Issuer,
			ExpiresAt: l.Expires.UTC(), Revocation: string(l.Revocation),
		}
		if l.Revocation == broker.RevokedAtExpiry || l.Revocation == broker.RevokedAtRotation {
			hit.WorksUntil = utc(l.WorksUntil())
		}
		out.Hits = append(out.Hits, hit)
	}
	return out
}

func (s *Server) placeBlock(c *call, body api.BlockChange) (reply, error) {
	selector, err := readSelector(body.Selector)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, s.cfg.Broker.Block(c.r.Context(), c.caller(), selector, body.Reason, body.Unmatched)
}

func (s *Server) liftBlock(c *call, body api.BlockChange) (reply, error) {
	selector, err := readSelector(body.Selector)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, s.cfg.Broker.Lift(c.r.Context(), c.caller(), selector, body.Reason)
}

func (s *Server) listBlocks(c *call) (reply, error) {
	targets, err := s.cfg.Broker.Targets(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	return ok(api.Blocks{Blocks: toBlocks(targets.Blocks)})
}

func toBlocks(list []*broker.Block) []api.Block {
	out := make([]api.Block, len(list))
	for i, b := range list {
		out[i] = api.Block{Kind: b.Selector.Kind, Name: b.Selector.Name, Reason: b.Reason, By: b.By, Since: b.Since.UTC()}
	}
	return out
}
