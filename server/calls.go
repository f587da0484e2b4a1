package server

import (
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/egress"
)

// reportCalls records a call that the holder of a lease is about to make, and adds counts
// of calls that were made.
func (s *Server) reportCalls(c *call, body api.CallReport) (reply, error) {
	id, err := c.leaseID()
	if err != nil {
		return reply{}, err
	}
	if body.Call == nil && body.Counts == nil {
		return reply{}, refuse(broker.ErrInvalidRequest, "send call, counts or both")
	}
	calls, out := s.cfg.Broker.Calls, api.CallReceipt{}
	if n := body.Counts; n != nil {
		if !n.LastAt.IsZero() {
			return reply{}, refuse(broker.ErrInvalidRequest, "last_at is the broker's: leave it out")
		}
		totals := broker.CallTotals{Made: n.Made, Refused: n.Refused, Failed: n.Failed, Sent: n.Sent, Received: n.Received}
		entitlement, err := calls.Count(c.r.Context(), c.caller(), id, totals)
		if err != nil {
			return reply{}, err
		}
		s.cfg.Metrics.called(entitlement, totals)
	}
	if body.Call != nil {
		announced, err := s.checkCall(c, id, body.Call)
		if err != nil {
			return reply{}, err
		}
		receipt, recorded, err := calls.Announce(c.r.Context(), c.caller(), id, announced)
		if err != nil {
			return reply{}, err
		}
		if out.Recorded = recorded; recorded {
			out.Receipt = &api.Receipt{Index: receipt.Index, LeafHash: hexDigest(receipt.LeafHash)}
		}
	}
	return ok(out)
}

// checkCall checks a call against the rules in force, which may be newer than those of the
// edge.
func (s *Server) checkCall(c *call, id broker.LeaseID, announced *api.Call) (broker.Call, error) {
	l, err := s.cfg.Broker.Lease(c.r.Context(), c.caller(), id)
	if err != nil {
		return broker.Call{}, err
	}
	var rules *broker.Egress
	if e := s.cfg.Broker.Rules().Catalogue[l.Entitlement]; e != nil {
		rules = e.Egress
	}
	policy, err := egress.Compile([]api.Offer{{Entitlement: l.Entitlement, Egress: egress.RulesOf(rules)}})
	if err != nil {
		return broker.Call{}, err
	}
	if strings.Contains(announced.URL, "?") {
		return broker.Call{}, refuse(broker.ErrInvalidRequest, "url must have no query")
	}
	_, target, err := policy.Match(announced.Method, announced.URL, nil)
	if err != nil {
		return broker.Call{}, refuse(broker.ErrCallNotAllowed, "the rules of "+l.Entitlement+" do not allow this call")
	}
	return broker.Call{Method: announced.Method, Target: target.URL()}, nil
}
