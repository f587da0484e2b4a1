package server

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// The token endpoint accepts three grants, and two more that continue a request: see
// deferred.go.
//
// Token exchange (RFC 8693): subject_token is required (section 2.1). It is the caller's own
// JWT-SVID, which authenticates the caller, or the token of another identity on whose behalf
// the caller acts (subject.go). All other proofs in the call, and actor_token, must prove one
// identity, the caller.
//
// JWT bearer (RFC 7523, section 2.1): assertion is the ID-JAG of a person.
//
// Client credentials (RFC 6749, section 4.4): the client authenticates with its
// certificate (RFC 8705), or with its JWT-SVID as bearer token or client_assertion
// (RFC 7523 and draft-ietf-oauth-spiffe-client-auth). Callers with an X.509-SVID and
// most OAuth libraries use this grant.
//
// audience names the entitlement, or resource names the audience of its tokens.
// authorization_details (RFC 9396) has the entitlement's parameters.

// assertionSPIFFE is the client_assertion_type of
// draft-ietf-oauth-spiffe-client-auth.
const assertionSPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

const needsSubject = "token exchange needs subject_token, the caller's own JWT-SVID (callers with an X.509-SVID use grant_type=client_credentials)"

// formProofs are the caller's own JWT-SVIDs in a form; empty: there is none.
type formProofs struct {
	assertion string // client_assertion
	subject   string // subject_token
	actor     string // actor_token
}

// tokenProofs checks the grant type and returns the proofs of the caller's identity.
func tokenProofs(f form) (formProofs, error) {
	switch f.get("grant_type") {
	case api.GrantClientCredentials, api.GrantDeferred, api.GrantBackchannel:
		return assertionProofs(f)
	case api.GrantTokenExchange:
		return exchangeProofs(f)
	case api.GrantJWTBearer:
		return bearerProofs(f)
	case "":
		return formProofs{}, refuse(broker.ErrInvalidRequest, "grant_type is missing")
	}
	return formProofs{}, errGrantType
}

// assertionProofs returns the client_assertion, the JWT-SVID that authenticates a client
// (RFC 7521, section 4.2), if the form has one.
func assertionProofs(f form) (formProofs, error) {
	assertion, kind := f.get("client_assertion"), f.get("client_assertion_type")
	switch {
	case assertion == "" && kind == "":
		return formProofs{}, nil
	case kind != api.AssertionTypeJWT && kind != assertionSPIFFE:
		return formProofs{}, refuse(broker.ErrUnauthenticated, "client_assertion_type must be "+api.AssertionTypeJWT)
	case assertion == "":
		return formProofs{}, refuse(broker.ErrUnauthenticated, "client_assertion is missing")
	}
	return formProofs{assertion: assertion}, nil
}

// noCache is the header of an answer with a token (RFC 6749, section 5.1). begin sets
// Cache-Control.
var noCache = http.Header{"Pragma": {"no-cache"}}

func (s *Server) token(c *call) (reply, error) {
	check := c.checkClientID
	if c.form.presented() != "" { // client_id may be that of the token, too: see subjectOf
		check = c.requireClientID
	}
	if err := check(); err != nil {
		return reply{}, err
	}
	kind := cmp.Or(c.form.get("requested_token_type"), api.TokenTypeAccessToken)
	if kind != api.TokenTypeAccessToken && kind != api.TokenTypeJWT {
		return reply{}, refuse(broker.ErrInvalidRequest, "requested_token_type must be "+api.TokenTypeAccessToken)
	}
	if err := c.checkNarrowing(); err != nil {
		return reply{}, err
	}
	if c.isPoll() {
		issued, form, err := s.poll(c)
		return c.issued(issued, form, err)
	}
	details, err := parseDetails(c.form.get("authorization_details"))
	if err != nil {
		return reply{}, err
	}
	form := tokenForm{kind: kind}
	if details.given {
		form.detailType = details.kind
	}
	issued, err := s.issueToken(c, details)
	return c.issued(issued, form, err)
}

// A tokenForm is how a token response shows its token.
type tokenForm struct {
	kind       string // issued_token_type
	detailType string // of authorization_details; empty: the name of the entitlement
}

// issued returns the token response (RFC 8693, section 2.2.1).
func (c *call) issued(issued *broker.Issued, form tokenForm, err error) (reply, error) {
	if err != nil {
		return reply{}, err
	}
	defer issued.Release()
	c.about = issued.Lease.ID.String()
	return reply{status: http.StatusOK, header: noCache, body: api.TokenResponse{
		AccessToken:     api.Token(issued.Credential.Secret.RevealField("token")),
		IssuedTokenType: form.kind,
		TokenType:       tokenType(issued.Lease),
		// Rounded down, so that the client stops using the token in time.
		ExpiresIn: int64(issued.Credential.Expires.Sub(c.now) / time.Second),
		Scope:     strings.Join(issued.Lease.Scopes, " "),
		Lease:     c.about,
		RequestID: issued.Lease.Request.String(),

		AuthorizationDetails: grantedDetails(issued.Lease, form.detailType),
	}}, nil
}

func (s *Server) issueToken(c *call, details details) (*broker.Issued, error) {
	if id := c.form.get("request_id"); id != "" {
		return s.collectToken(c, id, details)
	}
	ask, err := s.readTokenAsk(c, details)
	if err != nil {
		return nil, err
	}
	issued, pending, err := s.cfg.Broker.AskAndCollect(c.r.Context(), c.caller(), ask, broker.IdempotencyKey{})
	if err == nil && issued == nil {
		c.about = pending.ID.String()
		if err := c.deferToken(pending, details); err != nil {
			return nil, err
		}
		return nil, &broker.Refusal{
			Err: broker.ErrPending, RequestID: pending.ID, Reasons: pending.Decision.Reasons, Retry: pollInterval,
			Detail: c.howToPoll(),
		}
	}
	return issued, err
}

// duration returns the duration of a parameter; zero if it is omitted.
func (f form) duration(name string) (time.Duration, error) {
	text := f.get(name)
	if text == "" {
		return 0, nil
	}
	var d api.Duration
	if err := d.UnmarshalText([]byte(text)); err != nil {
		return 0, refuse(broker.ErrInvalidTTL, name+": "+err.Error())
	}
	return d.Std(), nil
}

// readTokenAsk reads an ask from a form.
func (s *Server) readTokenAsk(c *call, details details) (broker.Ask, error) {
	scopes, err := parseScope(c.form.get("scope"))
	if err != nil {
		return broker.Ask{}, err
	}
	ask := broker.Ask{
		Scopes: scopes, Justification: c.form.get("justification"), Ticket: c.form.get("ticket"), Message: c.form.get("binding_message"), SourceIP: c.from,
	}
	if ask.TTL, err = c.form.duration("ttl"); err == nil {
		ask.Duration, err = c.form.duration("duration")
	}
	if err != nil {
		return ask, err
	}
	rules := s.cfg.Broker.Rules()
	may := func(entitlement string) bool {
		return s.cfg.Broker.MayAsk(c.r.Context(), c.caller(), entitlement)
	}
	ask.Token, ask.Resource = true, c.form.get("resource")
	resources := c.form["resource"]
	if ask.Delegation, err = c.formSubject(audienceOf(rules.Catalogue, c.form)); err != nil {
		return ask, err
	}
	if fillFromSubject(&ask, c.form); ask.Resource != "" && len(resources) == 0 {
		resources = []string{ask.Resource}
	}
	ask.Entitlement, err = target(rules.Catalogue, c.form["audience"], resources, ask.Scopes, may)
	if err != nil {
		return ask, err
	}
	err = details.fill(&ask)
	return ask, err
}

// audienceOf returns the audience of the token that a form requests; empty: it names none.
func audienceOf(catalogue broker.Catalogue, f form) string {
	if e := catalogue[f.get("audience")]; e != nil && len(f["resource"]) == 0 {
		return e.Audience
	}
	return f.get("resource")
}

// parseScope returns the scope tokens of a scope parameter; none if it is empty. Single
// spaces separate the tokens, and no other character does (RFC 6749, section 3.3): two
// parsers must not read the same text as different scopes.
func parseScope(scope string) ([]string, error) {
	if scope == "" {
		return nil, nil
	}
	list := strings.Split(scope, " ")
	if slices.Contains(list, "") {
		return nil, refuse(broker.ErrInvalidScope, "separate scopes by single spaces, without a space at the start or the end")
	}
	return list, nil
}

// target returns the name of the entitlement that a call requests. RFC 8693 allows
// several targets; the broker's tokens have one, so more are an invalid_target
// (section 2.2.2). The domain checks whether the catalogue has the entitlement and
// issues tokens for it, because only callers who may request it may know.
func target(catalogue broker.Catalogue, audience, resource, scopes []string, may func(string) bool) (string, error) {
	switch {
	case len(audience) > 1 || len(resource) > 1:
		return "", refuse(broker.ErrInvalidTarget, "a token has one target: request one token per target")
	case len(audience) == 0 && len(resource) == 0:
		return "", refuse(broker.ErrInvalidRequest, "name the entitlement in audience, or the audience of its tokens in resource")
	case len(audience) == 0:
		return byResource(catalogue, resource[0], scopes, may)
	case strings.ContainsAny(audience[0], ":/"): // no entitlement has such a name
		return "", refuse(broker.ErrInvalidTarget, "audience is the name of an entitlement: use resource for the URL of a service")
	}
	return audience[0], nil
}

// byResource returns the only entitlement that issues tokens for the resource, has all
// the scopes, and may be requested by the caller.
func byResource(catalogue broker.Catalogue, resource string, scopes []string, may func(string) bool) (string, error) {
	// RFC 8693, section 2.1: an absolute URI without a fragment.
	if u, err := url.Parse(resource); err != nil || !u.IsAbs() || strings.Contains(resource, "#") {
		return "", refuse(broker.ErrInvalidTarget, "resource is not an absolute URI without a fragment: use audience for the name of an entitlement")
	}
	var found []string
	for name, e := range catalogue {
		lacks := func(scope string) bool { return !slices.Contains(e.Scopes, scope) }
		if e.Audience == resource && !slices.ContainsFunc(scopes, lacks) && may(name) {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		return "", broker.ErrInvalidTarget
	}
	return found[0], nil
}

// collectToken collects the token of an earlier request. Clients poll with it, and
// cannot change the request.
func (s *Server) collectToken(c *call, text string, details details) (*broker.Issued, error) {
	id, err := broker.ParseRequestID(text)
	if err != nil {
		return nil, err
	}
	c.about = id.String()
	for _, name := range []string{"ttl", "duration", "justification", "ticket", "binding_message"} {
		if c.form.get(name) != "" {
			return nil, refuse(broker.ErrInvalidRequest, "request_id names an earlier request: omit "+name)
		}
	}
	r, err := s.cfg.Broker.Request(c.r.Context(), c.caller(), id)
	if err != nil {
		return nil, err
	}
	if !c.samePresented(c.form.presented(), r.Delegation) {
		return nil, refuse(broker.ErrForeignSubject, "the request was filed with another token")
	}
	if err := s.checkPoll(c, r, details); err != nil {
		return nil, err
	}
	return s.cfg.Broker.Collect(c.r.Context(), c.caller(), id, broker.IdempotencyKey{})
}

// checkPoll checks that the request is for tokens, and that the parameters that the
// caller repeats match the request.
func (s *Server) checkPoll(c *call, r *broker.Request, details details) error {
	e := s.cfg.Broker.Rules().Catalogue[r.Entitlement]
	if e == nil || e.Audience == "" {
		return broker.ErrInvalidTarget
	}
	if a := c.form["audience"]; len(a) > 0 && !slices.Equal(a, []string{r.Entitlement}) {
		return refuse(broker.ErrInvalidTarget, "the request is for another entitlement")
	}
	if a := c.form["resource"]; len(a) > 0 && !slices.Equal(a, []string{e.Audience}) {
		return refuse(broker.ErrInvalidTarget, "the request is for another resource")
	}
	scopes, err := parseScope(c.form.get("scope"))
	if err != nil {
		return err
	}
	slices.Sort(scopes)
	if len(scopes) > 0 && !slices.Equal(scopes, r.Scopes) {
		return refuse(broker.ErrInvalidScope, "the request is for other scopes")
	}
	return details.checkSame(r)
}

const maxToken = 16 << 10 // bytes

// formToken returns the token to introspect or revoke. It ignores token_type_hint,
// because the types of tokens have different forms.
func (c *call) formToken() (string, error) {
	if err := c.checkClientID(); err != nil {
		return "", err
	}
	token := c.form.get("token")
	if token == "" || len(token) > maxToken {
		return "", refuse(broker.ErrInvalidRequest, "token is missing or too long")
	}
	return token, c.checkProvenToken(token)
}

// introspect implements RFC 7662. For callers who may not introspect the token, the
// answer is the same as for an unknown token (section 2.2).
func (s *Server) introspect(c *call) (reply, error) {
	token, err := c.formToken()
	if err != nil {
		return reply{}, err
	}
	in, err := s.cfg.Broker.Introspect(c.r.Context(), c.caller(), token)
	if err != nil {
		return reply{}, err
	}
	if in == nil {
		return ok(api.Introspection{})
	}
	c.about = in.Lease.ID.String()
	out := api.Introspection{
		Active: true, Scope: strings.Join(in.Lease.Scopes, " "), ClientID: in.Lease.Holder,
		Expires: in.Lease.Expires.Unix(), IssuedAt: in.Lease.Opened.Unix(), Audience: in.Audience,
		Issuer: s.external.String(), ID: in.Lease.ID.String(), Entitlement: in.Lease.Entitlement, Request: in.Lease.Request.String(),
	}
	out.Subject, out.Actor = toActor(&in.Lease)
	out.Confirm, out.TokenType = confirmation(&in.Lease), tokenType(&in.Lease)
	out.AuthorizationDetails = grantedDetails(&in.Lease, "")
	return ok(out)
}

// revokeToken implements RFC 7009. The answer is 200 even if there is nothing to
// revoke (section 2.2).
func (s *Server) revokeToken(c *call) (reply, error) {
	token, err := c.formToken()
	if err != nil {
		return reply{}, err
	}
	if isCode, err := s.cancelCode(c, token); isCode || err != nil {
		return reply{status: http.StatusOK}, err
	}
	if err := s.cfg.Broker.RevokeToken(c.r.Context(), c.caller(), token); err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK}, nil
}
