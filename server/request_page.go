package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// The page of one request, where approvers and reviewers decide.

type requestPage struct {
	requestView
	continuation
	joinPart
	CanVote, CanReview, CanWithdraw bool
	Facts                           api.Facts
	Same                            *api.RequestHistory  // earlier requests for the entitlement
	Others                          []api.RequestHistory // earlier requests for others
	Leases                          []api.Lease
	Axis                            *ui.Axis
	Needs                           api.Obligations
	Command                         string // with which the requester goes on
	Done, Failed                    string
	LogInAgain                      bool
	Form                            form // the contents of a form that was refused
}

func (s *Server) requestPage(c *call) (reply, error) {
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	r, err := s.requestOf(c)
	if err != nil {
		return reply{}, err
	}
	return s.showRequest(c, http.StatusOK, r, requestPage{Done: s.done(c, r)})
}

// requestOf returns the request that the path names.
func (s *Server) requestOf(c *call) (*broker.Request, error) {
	id, err := broker.ParseRequestID(c.r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	c.about = id.String()
	return s.cfg.Broker.Request(c.r.Context(), c.caller(), id)
}

func (s *Server) showRequest(c *call, status int, r *broker.Request, p requestPage) (reply, error) {
	ctx, b := c.r.Context(), s.cfg.Broker
	p.requestView = s.view(c, r)
	p.CanVote, p.CanReview = b.CanDecide(c.caller(), r)
	p.CanWithdraw = p.Mine && p.Status == api.StatusPending
	if p.Decision.Obligations != nil {
		p.Needs = *p.Decision.Obligations
	}
	var err error
	if p.Facts, err = s.facts(ctx, c.caller(), r); err != nil {
		return reply{}, err
	}
	p.splitHistory()
	leases, err := b.LeasesOf(ctx, c.caller(), r)
	if err != nil {
		return reply{}, err
	}
	p.CanEnd = s.canEnd(c, r, leases)
	for _, l := range leases {
		p.Leases = append(p.Leases, toLease(l, c.now))
	}
	if p.Axis, err = s.axisOf(ctx, r, leases, c.now); err != nil {
		return reply{}, err
	}
	if p.continuation, err = s.continueFrom(c, r, p.CanVote || p.CanReview); err != nil {
		return reply{}, err
	}
	p.joinPart = s.joinOf(c, r, leases)
	if p.Command = p.commandOf(); p.Group != "" && p.Status == api.StatusApproved && !p.CanJoin {
		p.Command = "" // the requester is a member
	}
	return c.pageOf(status, ui.Page{Name: "request", Title: "Request for " + r.Entitlement, Tab: "inbox", Data: p})
}

// decideRequest handles the forms of a request's page.
func (s *Server) decideRequest(c *call) (reply, error) {
	r, err := s.requestOf(c)
	if err != nil {
		return reply{}, err
	}
	err = s.carryOut(c, r)
	if err == nil {
		return c.redirect(s.to(c.keepInbox("/ui/requests/" + r.ID.String() + "?done=" + c.form.get("do"))))
	}
	m := errorRowOf(err)
	if m.fault == serverFault || m.status == http.StatusUnauthorized {
		return reply{}, err
	}
	problem := c.problemOf(err)
	p := requestPage{Failed: strings.Join(append([]string{problem.Detail}, problem.Reasons...), " "), LogInAgain: errors.Is(err, broker.ErrLoginStale), Form: c.form}
	if newer, reading := s.requestOf(c); reading == nil {
		r = newer
	}
	answer, rendering := s.showRequest(c, m.status, r, p)
	answer.code = problem.Code
	return answer, rendering
}

// carryOut performs the action of a form.
func (s *Server) carryOut(c *call, r *broker.Request) error {
	b, ctx := s.cfg.Broker, c.r.Context()
	do := c.form.get("do")
	if do == "withdraw" {
		_, err := b.Withdraw(ctx, c.caller(), r.ID)
		return err
	}
	if do == "join" {
		return s.join(c, r)
	}
	kind, v, err := c.voteOf(r)
	if err != nil {
		return err
	}
	if v.Signature, v.Salt, err = c.signed(kind.name + " " + r.ID.String()); err != nil {
		return err
	}
	_, err = c.asApprover(func(caller broker.Caller) (*broker.Request, error) { return kind.decide(b, ctx, caller, r.ID, v) })
	return err
}

// A decisionKind is a kind of decision on a request: how it is prepared for
// signing, and how it is made.
type decisionKind struct {
	name   string
	decide func(*broker.Broker, context.Context, broker.Caller, broker.RequestID, broker.Vote) (*broker.Request, error)
	sign   func(*broker.Broker, context.Context, broker.Caller, broker.RequestID, broker.Vote) (*broker.Signing, error)
}

var (
	decideVote   = decisionKind{"vote", (*broker.Broker).Vote, (*broker.Broker).PrepareVote}
	decideReview = decisionKind{"review", (*broker.Broker).Review, (*broker.Broker).PrepareReview}
)

// voteOf reads the decision from a form.
func (c *call) voteOf(r *broker.Request) (decisionKind, broker.Vote, error) {
	do := c.form.get("do")
	_, digest, err := c.seen(c.form.get("digest"))
	v := broker.Vote{Approve: do == "approve" || do == "justified", Digest: digest, Comment: c.text("comment")}
	if err != nil {
		return decisionKind{}, v, err
	}
	switch do {
	case "approve":
		err := c.narrowing(r, &v)
		return decideVote, v, err
	case "deny":
		return decideVote, v, nil
	case "justified", "unjustified":
		return decideReview, v, nil
	}
	return decisionKind{}, v, refuse(broker.ErrInvalidRequest, "the form names no action")
}

// text returns a text field with LF line ends; browsers send CRLF.
func (c *call) text(name string) string {
	return strings.TrimSpace(strings.ReplaceAll(c.form.get(name), "\r\n", "\n"))
}

// narrowing reads how an approval narrows the request. A field that equals the
// request narrows nothing.
func (c *call) narrowing(r *broker.Request, v *broker.Vote) (err error) {
	var scopes []string
	for _, scope := range r.Scopes {
		if c.form.get("scope."+scope) != "" {
			scopes = append(scopes, scope)
		}
	}
	switch {
	case len(scopes) == 0 && len(r.Scopes) > 0:
		return refuse(broker.ErrInvalidScope, "select at least one scope, or deny the request")
	case len(scopes) < len(r.Scopes):
		v.Scopes = scopes
	}
	if v.TTL, err = c.shorter("ttl", r.TTL); err != nil {
		return err
	}
	v.Duration, err = c.shorter("duration", r.Duration)
	return err
}

func (c *call) shorter(name string, requested time.Duration) (time.Duration, error) {
	text := strings.TrimSpace(c.form.get(name))
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, refuse(broker.ErrInvalidTTL, name+" is a duration such as 10m or 1h30m")
	}
	if d == requested {
		return 0, nil
	}
	return d, nil
}
