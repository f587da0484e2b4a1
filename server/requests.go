package server

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

func (s *Server) ask(c *call, body api.Ask) (reply, error) {
	ask, key, err := c.readAsk(body)
	if err != nil {
		return reply{}, err
	}
	r, err := s.cfg.Broker.Ask(c.r.Context(), c.caller(), ask, key)
	if err != nil {
		return reply{}, err
	}
	c.about = r.ID.String()
	out := c.toRequest(r, c.now)
	if ask.DryRun {
		return ok(dryRun(out))
	}
	return c.created("/v1/requests/"+out.ID, out)
}

// dryRun sets the status that the request would have had.
func dryRun(out api.Request) api.Request {
	out.DryRun, out.Status = true, api.StatusApproved
	if len(out.Approvals.Needed) > 0 {
		out.Status = api.StatusPending
	}
	return out
}

func (s *Server) askAndCollect(c *call, body api.Ask) (reply, error) {
	if body.DryRun {
		return reply{}, refuse(broker.ErrInvalidRequest, "dry_run is for POST /v1/requests")
	}
	ask, key, err := c.readAsk(body)
	if err != nil {
		return reply{}, err
	}
	issued, pending, err := s.cfg.Broker.AskAndCollect(c.r.Context(), c.caller(), ask, key)
	switch {
	case err != nil:
		return reply{}, err
	case issued == nil:
		c.about = pending.ID.String()
		out := c.toRequest(pending, c.now)
		return reply{status: http.StatusAccepted, body: out, header: http.Header{"Location": {s.url("/v1/requests/" + out.ID)}}}, nil
	}
	return c.credential(issued)
}

// readAsk converts the body. A subject_token is the token of the identity on whose behalf the
// call is made, or another proof of the caller's own.
func (c *call) readAsk(body api.Ask) (broker.Ask, broker.IdempotencyKey, error) {
	subject, err := c.readSubject(body)
	if err != nil {
		return broker.Ask{}, broker.IdempotencyKey{}, err
	}
	var extends broker.RequestID
	if body.Extends != "" {
		if extends, err = broker.ParseRequestID(body.Extends); err != nil {
			return broker.Ask{}, broker.IdempotencyKey{}, refuse(broker.ErrInvalidRequest, "extends must be the ID of an earlier request of yours")
		}
	}
	fine, err := readDetails(body.AuthorizationDetails)
	if err != nil {
		return broker.Ask{}, broker.IdempotencyKey{}, err
	}
	key, err := c.idempotencyKey()
	ask := broker.Ask{
		BreakGlass: body.BreakGlass, NotBefore: body.NotBefore, Extends: extends,
		Entitlement: body.Entitlement, Scopes: body.Scopes, TTL: body.TTL.Std(), Duration: body.Duration.Std(),
		Justification: body.Justification, Message: body.BindingMessage, Ticket: body.Ticket, Parameters: body.Parameters,
		SourceIP: c.from, DryRun: body.DryRun, Delegation: subject,
	}
	err = errors.Join(err, fine.fill(&ask))
	return ask, key, err
}

func (s *Server) collect(c *call, _ nothing) (reply, error) {
	id, err := broker.ParseRequestID(c.r.PathValue("id"))
	if err != nil {
		return reply{}, err
	}
	c.about = id.String()
	key, err := c.idempotencyKey()
	if err != nil {
		return reply{}, err
	}
	issued, err := s.cfg.Broker.Collect(c.r.Context(), c.caller(), id, key)
	if err != nil {
		return reply{}, err
	}
	return c.credential(issued)
}

func (s *Server) withdraw(c *call, _ nothing) (reply, error) {
	id, err := broker.ParseRequestID(c.r.PathValue("id"))
	if err != nil {
		return reply{}, err
	}
	c.about = id.String()
	r, err := s.cfg.Broker.Withdraw(c.r.Context(), c.caller(), id)
	if err != nil {
		return reply{}, err
	}
	return ok(c.toRequest(r, c.now))
}

// vote records a person's approval or denial.
func (s *Server) vote(c *call, body api.Vote) (reply, error) {
	if body.Decision != api.Approve && body.Decision != api.Deny {
		return reply{}, refuse(broker.ErrInvalidRequest, "decision must be approve or deny")
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

// review records a person's verdict on a break-glass use.
func (s *Server) review(c *call, body api.Finding) (reply, error) {
	if body.Verdict != api.Justified && body.Verdict != api.Unjustified {
		return reply{}, refuse(broker.ErrInvalidRequest, "verdict must be justified or unjustified")
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

// seen reads the request that a person decides, and the digest of the version that
// they saw.
func (c *call) seen(text string) (id broker.RequestID, digest audit.Digest, err error) {
	if id, err = broker.ParseRequestID(c.r.PathValue("id")); err != nil {
		return id, digest, err
	}
	c.about = id.String()
	if digest.UnmarshalText([]byte(text)) != nil {
		return id, audit.Digest{}, refuse(broker.ErrInvalidRequest, "digest must be the digest of the request that you saw, 64 lower-case hexadecimal digits")
	}
	return id, digest, nil
}

func (s *Server) getRequest(c *call) (reply, error) {
	id, err := broker.ParseRequestID(c.r.PathValue("id"))
	if err != nil {
		return reply{}, err
	}
	c.about = id.String()
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	if c.query.get("wait") == "" && c.r.Method == http.MethodGet && acceptsEvents(c.r.Header.Values("Accept")) {
		return s.streamRequest(c, id)
	}
	var r *broker.Request
	if c.query.get("wait") == "" {
		r, err = s.cfg.Broker.Request(c.r.Context(), c.caller(), id)
	} else {
		r, err = s.await(c, id)
	}
	if err != nil {
		return reply{}, err
	}
	out, err := s.requestBody(c, r, time.Now()) // the call may have waited
	if err != nil {
		return reply{}, err
	}
	return ok(out)
}

// await waits until the request's version is later than after. It requires after,
// because without it a client would poll in a tight loop.
func (s *Server) await(c *call, id broker.RequestID) (*broker.Request, error) {
	wait, err := time.ParseDuration(c.query.get("wait"))
	if err != nil || wait < 0 || wait > api.MaxWait {
		return nil, refuse(broker.ErrInvalidRequest, "wait must be a duration of at most "+broker.FormatDuration(api.MaxWait))
	}
	after, err := strconv.ParseUint(c.query.get("after"), 10, 31)
	if err != nil {
		return nil, refuse(broker.ErrInvalidRequest, "wait needs after, the last version that you read")
	}
	c.extend(wait)
	waiting, cancel := c.waiting()
	defer cancel()
	waiting, stop := context.WithTimeout(waiting, wait)
	defer stop()
	return s.cfg.Broker.Await(c.r.Context(), c.caller(), id, int(after), waiting.Done())
}

func (s *Server) listRequests(c *call) (reply, error) {
	limit, err := c.limit()
	if err != nil {
		return reply{}, err
	}
	switch c.query.get("inbox") {
	case "true":
		return s.listInbox(c, limit)
	case "", "false":
	default:
		return reply{}, refuse(broker.ErrInvalidRequest, "inbox must be true or false")
	}
	if c.query.get("order") != "" {
		return reply{}, refuse(broker.ErrInvalidRequest, "order needs inbox=true: other lists have the newest first")
	}
	q, err := s.requestQuery(c)
	if err != nil {
		return reply{}, err
	}
	q.Limit = limit
	page, next, err := s.cfg.Broker.Requests(c.r.Context(), c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	return ok(c.requestPage(page, next.String()))
}

func (c *call) requestPage(page []*broker.Request, next string) api.RequestPage {
	out := api.RequestPage{Requests: make([]api.Request, len(page)), Next: next}
	for i, r := range page {
		out.Requests[i] = c.toRequest(r, c.now)
	}
	return out
}

// requestQuery reads the parameters of a list of requests.
func (s *Server) requestQuery(c *call) (q broker.RequestQuery, err error) {
	q = broker.RequestQuery{Requester: c.query.get("requester"), Entitlement: c.query.get("entitlement"), Team: c.query.get("team"), Now: c.now}
	if q.Subject = c.query.get("on_behalf_of"); q.Subject != "" && q.Requester == "" {
		q.Requester = broker.Everyone
	}
	if q.Status, err = parseStatus(c.query.get("status")); err != nil {
		return q, err
	}
	if q.Before, err = cursor(c, broker.ParseRequestID); err != nil {
		return q, err
	}
	risk, err := parseRisk(c.query.get("risk"))
	if err != nil {
		return q, err
	}
	words := broker.SearchWords(c.query.get("q"))
	if risk == 0 && len(words) == 0 {
		return q, checkSearch(c.query.get("q"))
	}
	rules := s.cfg.Broker.Rules()
	q.Match = func(r *broker.Request) bool {
		if of, _ := rules.Risk(r); risk != 0 && of != risk {
			return false
		}
		return r.Contains(words)
	}
	return q, checkSearch(c.query.get("q"))
}

// listInbox lists what waits for the caller's decision, in the order of the inbox.
func (s *Server) listInbox(c *call, limit int) (reply, error) {
	if c.query.get("status") != "" {
		return reply{}, refuse(broker.ErrInvalidRequest, "status does not combine with inbox: an inbox has pending requests and open reviews")
	}
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	values := url.Values(c.query)
	_, q, err := readInboxFilter(values)
	if err != nil {
		return reply{}, err
	}
	if q.Requester == broker.Everyone {
		q.Requester = ""
	}
	if q.After, err = cursor(c, parsePlace); err != nil {
		return reply{}, err
	}
	q.Single, q.Limit = true, limit
	in, err := s.cfg.Broker.Inbox(c.r.Context(), c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	var page []*broker.Request
	for _, g := range in.Groups {
		page = append(page, g.Requests...)
	}
	return ok(c.requestPage(page, placeText(in.Next)))
}

// Rows of a page.
const (
	pageDefault = 50
	pageMost    = 200
)

func (c *call) limit() (int, error) {
	text := c.query.get("limit")
	if text == "" {
		return pageDefault, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > pageMost {
		return 0, refuse(broker.ErrInvalidRequest, "limit must be a number from 1 to "+strconv.Itoa(pageMost))
	}
	return n, nil
}

// cursor returns the ID of the last row of the previous page; zero for the first page.
func cursor[ID any](c *call, parse func(string) (ID, error)) (id ID, err error) {
	text := c.query.get("cursor")
	if text == "" {
		return id, nil
	}
	if id, err = parse(text); err != nil {
		return id, refuse(broker.ErrInvalidRequest, "cursor must be the next_cursor of the previous page")
	}
	return id, nil
}

func (s *Server) entitlements(c *call) (reply, error) {
	offers, err := s.cfg.Broker.Entitlements(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	out := api.Offers{Entitlements: make([]api.Offer, len(offers))}
	for i, o := range offers {
		out.Entitlements[i] = toOffer(o)
	}
	return ok(out)
}
