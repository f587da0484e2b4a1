package server

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// backchannel is the backchannel authentication endpoint of CIBA (OpenID Connect
// Client-Initiated Backchannel Authentication Flow, Core 1.0, section 7), in poll mode. It
// files a request for a token, and the client polls the token endpoint with the
// auth_req_id.
//
// Policy chooses who approves. The hint of the client therefore names whose rights the
// token has: see checkHint.
func (s *Server) backchannel(c *call) (reply, error) {
	if err := c.checkClientID(); err != nil {
		return reply{}, err
	}
	if err := c.checkNarrowing(); err != nil {
		return reply{}, err
	}
	if err := c.checkHint(); err != nil {
		return reply{}, err
	}
	details, err := parseDetails(c.form.get("authorization_details"))
	if err != nil {
		return reply{}, err
	}
	c.dropOpenID()
	ask, err := s.readTokenAsk(c, details)
	if err != nil {
		return reply{}, err
	}
	ask.Once = true
	if ask.WaitAtMost, err = requestedExpiry(c.form.get("requested_expiry")); err != nil {
		return reply{}, err
	}
	r, err := s.cfg.Broker.Ask(c.r.Context(), c.caller(), ask, broker.IdempotencyKey{})
	if err != nil {
		return reply{}, err
	}
	c.about = r.ID.String()
	until := r.Lapses
	if until.IsZero() {
		until = r.CollectUntil // policy requires no approval
	}
	return reply{status: http.StatusOK, header: noCache, body: api.BackchannelResponse{
		AuthReqID: api.Token(c.newCode(backchannelPurpose, waitCode{request: r.ID, typed: isTyped(details)})),
		ExpiresIn: secondsUntil(until, c.now),
		Interval:  int(pollInterval / time.Second),
		RequestID: r.ID.String(),
	}}, nil
}

const backchannelPath = "/oauth2/bc-authorize"

// backchannelParameters are the parameters of CIBA that the endpoint honors, besides
// those of the token endpoint.
var backchannelParameters = []string{"login_hint", "login_hint_token", "id_token_hint", "requested_expiry"}

// checkHint checks the hint, which must be the only one (CIBA, section 7.1). A person's
// name, and an ID token for another client, do not prove that the person lets the client act
// for them, so they name no one on whose behalf it may ask.
func (c *call) checkHint() error {
	var given []string
	for _, name := range []string{"login_hint", "login_hint_token", "id_token_hint"} {
		if c.form.get(name) != "" {
			given = append(given, name)
		}
	}
	switch {
	case len(given) != 1:
		return refuse(broker.ErrInvalidRequest, "send exactly one hint: login_hint with your own SPIFFE ID, or login_hint_token with a person's ID-JAG or access token")
	case c.form.get("user_code") != "":
		return refuse(broker.ErrInvalidRequest, "user_code is not supported: approvers log in to the broker")
	case given[0] == "login_hint_token", given[0] == "login_hint" && c.form.get("login_hint") == c.who.ID:
		return nil
	case given[0] == "login_hint":
		return refuse(broker.ErrUnknownUser, "login_hint must be your own SPIFFE ID: a name does not prove that a person lets you act for them")
	}
	return refuse(broker.ErrUnknownUser, "id_token_hint is not accepted: it proves a login to another client, and not that a person lets you act for them")
}

// hintSubject returns on whose behalf a client waits whose hint is a login_hint_token: a
// person's ID-JAG, or their access token for an audience that is reserved for delegation. nil:
// the hint is the client itself.
func (c *call) hintSubject(resource string) (*broker.Delegation, error) {
	token := c.form.get("login_hint_token")
	if token == "" {
		return nil, nil
	}
	kind := api.TokenTypeAccessToken
	if unverifiedType(token) == idJAGType {
		kind = api.TokenTypeIDJAG
	}
	d, err := c.subjectOf(token, kind, c.clientID(), resource)
	var expired interface{ Expired() bool }
	switch code := broker.Code(err); {
	case errors.As(err, &expired) && expired.Expired():
		return nil, refuse(broker.ErrHintExpired, "the login_hint_token has expired: get a new one from the provider")
	case code == broker.Code(broker.ErrForeignSubject), code == broker.Code(broker.ErrInvalidRequest):
		return nil, refuse(broker.ErrUnknownUser, "login_hint_token: "+refusalOf(err).Detail)
	}
	return d, err
}

// idJAGType is the typ of an ID-JAG (draft-ietf-oauth-identity-assertion-authz-grant).
const idJAGType = "oauth-id-jag+jwt"

// dropOpenID removes the scope that CIBA requires of OpenID Connect clients. The broker is
// no OpenID provider for people: it issues no ID token, and its tokens lack the scope.
func (c *call) dropOpenID() {
	if scopes := strings.Split(c.form.get("scope"), " "); slices.Contains(scopes, "openid") {
		c.form["scope"] = []string{strings.Join(slices.DeleteFunc(scopes, func(s string) bool { return s == "openid" }), " ")}
	}
}

// requestedExpiry returns how long the request may wait for approval.
func requestedExpiry(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	seconds, err := strconv.ParseUint(text, 10, 31)
	if err != nil || seconds == 0 || strings.HasPrefix(text, "+") {
		return 0, refuse(broker.ErrInvalidRequest, "requested_expiry must be a positive number of seconds")
	}
	return time.Duration(seconds) * time.Second, nil
}
