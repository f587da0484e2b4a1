package server

import (
	"slices"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// What a request's page offers next: the next decision, the inbox that the viewer came
// from, or the command with which the requester goes on.

// A continuation is where an approver can go from a request.
type continuation struct {
	Inbox   string       // the path of the inbox that the viewer came from; empty: not offered
	Next    *requestView // the next decision of that inbox; nil: none waits
	NextAt  string       // its path
	Waiting int          // how many decisions of that inbox wait
	Here    string       // the path of this page, with the state of that inbox
}

// continueFrom returns where the viewer can go from the request. The next decision is
// offered once the viewer has made this one.
func (s *Server) continueFrom(c *call, r *broker.Request, decides bool) (n continuation, err error) {
	n.Here = s.to(c.keepInbox("/ui/requests/" + r.ID.String()))
	if !decides && !decidedBy(c.who, r) {
		return n, nil
	}
	if n.Inbox = c.backToInbox(); decides {
		return n, nil
	}
	_, q := c.inboxFilter()
	q.After, q.Before, q.Limit = broker.InboxPlace{}, broker.InboxPlace{}, 1
	in, err := s.cfg.Broker.Inbox(c.r.Context(), c.caller(), q)
	if err != nil || len(in.Groups) == 0 {
		return n, err
	}
	n.Waiting = in.Matching
	next, several := in.Groups[0].Requests[0], len(in.Groups[0].Requests) > 1
	view := s.view(c, next)
	n.Next, n.NextAt = &view, "/ui/requests/"+next.ID.String()
	if several {
		n.NextAt += "/alike"
	}
	n.NextAt = s.to(c.keepInbox(n.NextAt))
	return n, nil
}

// decidedBy reports whether the person voted on the request or reviewed it.
func decidedBy(who broker.Identity, r *broker.Request) bool {
	return slices.ContainsFunc(slices.Concat(r.Approvals, r.Verdicts), func(a broker.Approval) bool { return a.Person == who.ID })
}

// done returns the message after a form that succeeded. It depends on the request, so that
// a link can't make a person believe that they decided.
func (s *Server) done(c *call, r *broker.Request) string {
	mine := r.Requester.ID == c.who.ID
	voted := func(list []broker.Approval, approve bool) bool {
		return slices.ContainsFunc(list, func(a broker.Approval) bool { return a.Person == c.who.ID && a.Approve == approve })
	}
	switch done := c.r.URL.Query().Get("done"); {
	case done == "approve" && voted(r.Approvals, true):
		return "You approved this request."
	case done == "deny" && voted(r.Approvals, false):
		return "You denied this request."
	case done == "justified" && voted(r.Verdicts, true), done == "unjustified" && voted(r.Verdicts, false):
		return "Your review is recorded."
	case done == "withdraw" && mine && r.Status == broker.RequestWithdrawn:
		return "You withdrew this request."
	case done == "withdraw" && broker.CanEnd(s.cfg.Broker, c.caller(), r):
		return "You ended this request and what it led to."
	case done == "asked" && mine && r.State(c.now) == broker.RequestPending:
		return "Your request is filed."
	case done == "join" && mine && !r.FirstExpires.IsZero():
		return "You are a member now."
	case done == "asked" && mine && r.State(c.now) == broker.RequestApproved:
		return "Your request is granted."
	}
	return ""
}

// commandOf returns the command with which the requester goes on; empty for others.
func (p *requestPage) commandOf() string {
	switch {
	case !p.Mine:
		return ""
	case p.Status == api.StatusPending:
		return "broker collect " + p.ID + " --wait " + waitFor
	case p.Status == api.StatusApproved:
		return "broker collect " + p.ID
	}
	return ""
}

// waitFor is how long the command for a waiting request waits.
const waitFor = "30m"

// splitHistory separates the requests for this entitlement from the others.
func (p *requestPage) splitHistory() {
	for _, h := range p.Facts.History {
		if h.Entitlement == p.Entitlement {
			p.Same = &h
		} else {
			p.Others = append(p.Others, h)
		}
	}
}
