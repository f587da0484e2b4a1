package egress

import (
	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// RulesOf returns the rules of an entitlement in the form of the API; nil if it has none.
func RulesOf(e *broker.Egress) *api.Egress {
	if e == nil {
		return nil
	}
	out := &api.Egress{
		Inject: api.Injection(e.Inject), Record: e.Record, MaxRequest: e.MaxRequest, MaxAnswer: e.MaxAnswer,
		Timeout: api.Duration(e.Timeout), IdleTimeout: api.Duration(e.IdleTimeout), Allow: make([]api.EgressRule, len(e.Allow)),
	}
	for i, r := range e.Allow {
		out.Allow[i] = api.EgressRule(r)
	}
	return out
}
