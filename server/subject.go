package server

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// On whose behalf a call is made. The caller always proves itself with its SVID. Its call may
// also have a token of someone else, whose rights it wants to use: a person's ID-JAG or access
// token, or the broker token of an agent that made the caller its sub-agent. Nothing else names
// another identity: a parameter such as login_hint is text that anyone can write.

// subjectMethods are the types of subject tokens of other identities.
var subjectMethods = map[string]broker.Method{
	api.TokenTypeIDJAG:       broker.MethodIDJAG,
	api.TokenTypeAccessToken: broker.MethodAccessToken,
}

// actsForOther reports whether the form of a token request has a token of another identity.
func (f form) actsForOther() bool {
	switch f.get("grant_type") {
	case api.GrantJWTBearer:
		return true
	case api.GrantTokenExchange:
		return f.get("subject_token_type") != api.TokenTypeJWT
	}
	return false
}

// presented returns the token of another identity in the form of a token request.
func (f form) presented() string {
	switch {
	case !f.actsForOther():
		return ""
	case f.get("grant_type") == api.GrantJWTBearer:
		return f.get("assertion")
	}
	return f.get("subject_token")
}

// exchangeProofs returns the proofs of the caller in a token exchange (RFC 8693, section 2.1).
// A subject_token of another identity proves nothing about the caller. An actor_token does: the
// caller is the actor.
func exchangeProofs(f form) (formProofs, error) {
	kind := f.get("subject_token_type")
	switch {
	case f.get("subject_token") == "" && (f.get("request_id") == "" || kind == api.TokenTypeJWT || kind == ""):
		return formProofs{}, refuse(broker.ErrInvalidRequest, needsSubject)
	case kind != api.TokenTypeJWT && subjectMethods[kind] == "":
		return formProofs{}, refuse(broker.ErrInvalidRequest, "subject_token_type must be "+api.TokenTypeJWT+" for the caller's own JWT-SVID, or "+api.TokenTypeIDJAG+" or "+api.TokenTypeAccessToken+" for the token of another identity")
	case (f.get("actor_token") == "") != (f.get("actor_token_type") == ""):
		return formProofs{}, refuse(broker.ErrInvalidRequest, "actor_token and actor_token_type belong together")
	case f.get("actor_token") != "" && f.get("actor_token_type") != api.TokenTypeJWT:
		return formProofs{}, refuse(broker.ErrInvalidRequest, "actor_token_type must be "+api.TokenTypeJWT+": the actor is the caller, and actor_token its own JWT-SVID")
	}
	proofs, err := assertionProofs(f)
	if kind == api.TokenTypeJWT {
		proofs.subject = f.get("subject_token")
	}
	proofs.actor = f.get("actor_token")
	return proofs, err
}

// bearerProofs returns the proofs of the caller in a JWT bearer grant (RFC 7523, section 2.1).
func bearerProofs(f form) (formProofs, error) {
	if f.get("assertion") == "" && f.get("request_id") == "" {
		return formProofs{}, refuse(broker.ErrInvalidRequest, "assertion is missing: send the ID-JAG of the person on whose behalf the call is made")
	}
	return assertionProofs(f)
}

// formSubject returns on whose behalf a token is requested; nil: the caller itself. resource is
// the audience of the token that the form names; empty: none.
func (c *call) formSubject(resource string) (*broker.Delegation, error) {
	switch f := c.form; {
	case c.route.path == backchannelPath:
		return c.hintSubject(resource)
	case !f.actsForOther():
		return nil, nil
	case f.get("grant_type") == api.GrantJWTBearer:
		return c.subjectOf(f.get("assertion"), api.TokenTypeIDJAG, c.clientID(), resource)
	default:
		return c.subjectOf(f.get("subject_token"), f.get("subject_token_type"), c.clientID(), resource)
	}
}

// readSubject returns on whose behalf a request is filed; nil: the caller itself.
func (c *call) readSubject(body api.Ask) (*broker.Delegation, error) {
	switch {
	case body.SubjectToken == "" && body.SubjectType == "":
		return nil, nil
	case body.SubjectToken == "":
		return nil, refuse(broker.ErrInvalidRequest, "subject_token_type needs subject_token")
	case body.SubjectType != "" && body.SubjectType != api.TokenTypeJWT:
		resource := ""
		if e := c.s.cfg.Broker.Rules().Catalogue[body.Entitlement]; e != nil {
			resource = e.Audience
		}
		return c.subjectOf(body.SubjectToken, body.SubjectType, "", resource)
	case c.session != nil:
		return nil, broker.ErrTwoIdentities
	}
	who, err := c.authenticate(body.SubjectToken)
	if err == nil {
		c.who = who
	}
	return nil, err
}

// subjectOf verifies the token of another identity that the call presents.
func (c *call) subjectOf(token, kind, clientID, resource string) (*broker.Delegation, error) {
	method := subjectMethods[kind]
	switch {
	case c.session != nil || c.who.Kind == broker.KindPerson:
		return nil, refuse(broker.ErrTwoIdentities, "only a workload acts on behalf of others: a person uses their own session")
	case method == "":
		return nil, refuse(broker.ErrInvalidRequest, "subject_token_type must be "+api.TokenTypeJWT+", "+api.TokenTypeIDJAG+" or "+api.TokenTypeAccessToken)
	case method == broker.MethodAccessToken && unverifiedIssuer(token) == c.s.external.String():
		if err := c.follow(); err != nil {
			return nil, err
		}
		return c.parentOf(token, clientID)
	case c.s.cfg.SubjectToken == nil:
		return nil, refuse(broker.ErrForeignSubject, "no provider of this broker issues tokens that let callers act for people")
	}
	if err := c.follow(); err != nil {
		return nil, err
	}
	proven := broker.SubjectToken{
		Token: token, Method: method, Actor: c.who, Key: c.caller().Key, ClientID: clientID, Resource: resource, At: c.now,
	}
	if c.who.Proof.Method == broker.MethodX509SVID {
		proven.Certificate = c.who.Proof.SHA256
	}
	return c.s.cfg.SubjectToken(c.r.Context(), proven)
}

// parentOf returns the delegation of a sub-agent: the token is a broker token of the agent that
// it acts for.
func (c *call) parentOf(token, clientID string) (*broker.Delegation, error) {
	if clientID != "" && clientID != c.who.ID {
		return nil, refuse(broker.ErrForeignSubject, "client_id names another client than the caller")
	}
	return broker.DelegationOf(c.r.Context(), c.s.cfg.Broker, c.caller(), token)
}

// unverifiedType returns the typ of a JWT, which is not verified; empty if there is none.
func unverifiedType(token string) string {
	header, err := base64.RawURLEncoding.Strict().DecodeString(token[:max(0, strings.IndexByte(token, '.'))])
	if err != nil || len(token) > maxToken {
		return ""
	}
	fields, err := strictjson.Object(header, maxDepth)
	if err != nil {
		return ""
	}
	kind, _ := strictjson.Text(fields["typ"])
	return strings.TrimPrefix(strings.ToLower(kind), "application/")
}

// unverifiedClaims returns the claims of a JWT, which are not verified; nil if there are none.
func unverifiedClaims(token string) map[string]json.RawMessage {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || len(token) > maxToken {
		return nil
	}
	payload, err := base64.RawURLEncoding.Strict().DecodeString(parts[1])
	if err != nil {
		return nil
	}
	claims, err := strictjson.Object(payload, maxDepth)
	if err != nil {
		return nil
	}
	return claims
}

// unverifiedIssuer returns the iss of a JWT, which is not verified; empty if there is none.
func unverifiedIssuer(token string) string {
	issuer, _ := strictjson.Text(unverifiedClaims(token)["iss"])
	return issuer
}

// fillFromSubject fills in what a request for a token leaves open with what the proof allows: an
// ID-JAG names the resource and the scopes that its provider granted.
func fillFromSubject(ask *broker.Ask, f form) {
	d := ask.Delegation
	if d == nil || f.get("grant_type") != api.GrantJWTBearer {
		return
	}
	if ask.Resource == "" && len(f["audience"]) == 0 {
		ask.Resource = d.Resource
	}
	if len(ask.Scopes) == 0 {
		ask.Scopes = slices.Clone(d.Scopes)
	}
}

// samePresented reports whether the token that a poll repeats is the one that the request was
// filed with. Its claims are not read again: an ID-JAG is used once, and may have expired.
func (c *call) samePresented(token string, d *broker.Delegation) bool {
	switch {
	case token == "":
		return true
	case d == nil:
		return false
	case !d.Parent.IsZero():
		parent, err := broker.DelegationOf(c.r.Context(), c.s.cfg.Broker, c.caller(), token)
		return err == nil && parent.Parent == d.Parent
	}
	return sha256.Sum256([]byte(token)) == d.Subject.Proof.SHA256
}
