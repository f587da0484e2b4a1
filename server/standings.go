package server

import (
	"errors"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// listFacts lists what the sources state about the subjects of a kind (GET /v1/facts).
func (s *Server) listFacts(c *call) (reply, error) {
	if !c.mayAudit() {
		return reply{}, refuse(broker.ErrDenied, "policy does not permit you to read facts: it needs the action audit")
	}
	subject := broker.StandingKey{Kind: broker.FactKind(c.query.get("kind")), Name: c.query.get("name")}
	if err := subject.Kind.Check(); err != nil {
		return reply{}, refuse(broker.ErrInvalidRequest, "kind: "+err.Error())
	}
	limit, err := c.limit()
	if err != nil {
		return reply{}, err
	}
	out, now := api.StandingPage{Standings: []api.Standing{}}, c.caller().At
	facts := s.cfg.Broker.Facts
	if subject.Name != "" {
		one, err := facts.Standing(c.r.Context(), subject)
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return reply{}, err
		}
		if err == nil {
			out.Standings = append(out.Standings, toStanding(facts, one, now))
		}
		return ok(out)
	}
	list, err := facts.List(c.r.Context(), subject.Kind, c.query.get("cursor"), limit)
	if err != nil {
		return reply{}, err
	}
	for _, one := range list {
		out.Standings = append(out.Standings, toStanding(facts, one, now))
	}
	if len(list) == limit {
		out.Next = list[limit-1].Name
	}
	return ok(out)
}

func toStanding(facts *broker.Facts, s *broker.Standing, now time.Time) api.Standing {
	cause := facts.Fault(s, now)
	out := api.Standing{Kind: string(s.Kind), Name: s.Name, Holds: cause == "", Cause: cause, EndsAt: utc(s.Until()), EndedAt: utc(s.Ended), Facts: []api.Fact{}}
	for _, f := range s.Facts {
		out.Facts = append(out.Facts, api.Fact{
			Source: f.Source, State: string(f.State), Cause: f.Cause, From: utc(f.From), Until: utc(f.Until),
			ConfirmedAt: utc(f.Confirmed), StaleAt: utc(f.StaleAt), Details: f.Details,
		})
	}
	return out
}

func toEndedBy(end *broker.FactEnd) *api.EndedBy {
	if end == nil {
		return nil
	}
	return &api.EndedBy{Fact: end.Subject.String(), Cause: end.Cause}
}
