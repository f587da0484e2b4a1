package server

import (
	"context"
	"net/url"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// facts gives what whoever decides on a request has to know beside it: the page
// shows it, and the terminal. It is for those who may see the request.
func (s *Server) facts(ctx context.Context, caller broker.Caller, r *broker.Request) (f api.Facts, err error) {
	b := s.cfg.Broker
	if f.Effect, err = b.Effect(ctx, caller, r); err != nil {
		return f, err
	}
	f.Proof = api.Proof{Method: string(r.Requester.Proof.Method), ExpiresAt: utc(r.Requester.Proof.Expires)}
	if e := b.Rules().Catalogue[r.Entitlement]; e != nil {
		f.Description, f.Owner, f.Revocation = e.Description, e.Owner, string(e.Revocation)
		f.ScopeTexts = textsOf(e, r.Scopes)
	}
	if r.SourceIP.IsValid() {
		f.From = r.SourceIP.String()
	}
	if s.cfg.TicketURL != "" && r.Ticket != "" {
		f.TicketURL = strings.ReplaceAll(s.cfg.TicketURL, "{ticket}", url.PathEscape(r.Ticket))
	}
	past, partial, err := b.RequestHistory(ctx, caller, r)
	for _, p := range past {
		f.History = append(f.History, api.RequestHistory{Entitlement: p.Entitlement, Asked: p.Asked, Granted: p.Granted, Denied: p.Refused, Pending: p.Pending})
	}
	f.HistoryPartial = partial
	return f, err
}

// textsOf gives what scopes mean, as far as the operator says so.
func textsOf(e *broker.Entitlement, scopes []string) map[string]string {
	texts := map[string]string{}
	for _, scope := range scopes {
		if text := e.ScopeTexts[scope]; text != "" {
			texts[scope] = text
		}
	}
	return texts
}
