package attest

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// A DelegationConfig configures which tokens of a provider let callers act on behalf of its
// people. The zero value accepts none.
type DelegationConfig struct {
	// IDJAGs accepts identity assertion JWT authorization grants of the provider.
	// Audience is the broker's issuer URL, their only audience.
	IDJAGs   bool
	Audience string

	// Audiences are reserved for delegation: an access token of the provider whose only
	// audience is one of them is accepted.
	Audiences []string

	// Clients are the callers of each OAuth client of the provider, as SPIFFE IDs that
	// cover themselves and everything below them. A client_id that is the SPIFFE ID of the
	// caller needs no entry.
	Clients map[string][]string

	Tenant string // of the provider's people; empty: tokens must not name one

	// GroupsElsewhere means that a directory states the groups of the provider's people, so
	// that a token need not have the groups claim.
	GroupsElsewhere bool
}

// SubjectToken verifies the token of a person on whose behalf a caller wants to act: an
// ID-JAG (draft-ietf-oauth-identity-assertion-authz-grant) or a JWT access token (RFC 9068).
// It returns a *Failure, or an error that wraps broker.ErrUnavailable if the provider cannot
// be reached. The domain decides what the caller may do, and that an ID-JAG is used once.
func (p *People) SubjectToken(ctx context.Context, t broker.SubjectToken) (*broker.Delegation, error) {
	k, ok := subjectKinds[t.Method]
	if !ok {
		return nil, &broker.Refusal{Err: broker.ErrForeignSubject, Detail: "the broker does not accept tokens of this type"}
	}
	s, err := p.readSubject(k, t.Token)
	if err != nil {
		return nil, err
	}
	op := p.issuer(k, s.claims.issuer)
	if op == nil {
		return nil, k.fail(CauseIssuer, "is of an issuer that may not issue it: only a provider that the operator configured may")
	}
	if err := op.checkSubjectToken(k, &s.claims, &t); err != nil {
		return nil, err
	}
	who, err := p.verifySubject(ctx, k, op, s, &t)
	if err != nil {
		return nil, err
	}
	return op.delegation(k, &s.claims, who, &t)
}

// issuer returns the provider with exactly this issuer whose tokens of the kind are accepted.
// Only its own keys verify the token, so that no issuer can speak for another one.
func (p *People) issuer(k subjectKind, issuer string) *provider {
	for _, op := range p.providers {
		d := op.cfg.Delegation
		accepts := k.method == broker.MethodIDJAG && d.IDJAGs || k.method == broker.MethodAccessToken && len(d.Audiences) > 0
		if accepts && op.cfg.Issuer == issuer {
			return op
		}
	}
	return nil
}

// checkSubjectToken makes the checks that need no key. The signature is verified last,
// because anyone can send tokens.
func (p *provider) checkSubjectToken(k subjectKind, c *subjectClaims, t *broker.SubjectToken) error {
	d := p.cfg.Delegation
	switch {
	case c.audience == p.cfg.ClientID && !(k.method == broker.MethodIDJAG && c.audience == d.Audience):
		return k.fail(CauseAudience, "is for the broker's login client: an ID token does not let anyone act for a person")
	case k.method == broker.MethodIDJAG && c.audience != d.Audience:
		return k.fail(CauseAudience, "is for another authorization server: its audience must be the broker's issuer")
	case k.method == broker.MethodAccessToken && !slices.Contains(d.Audiences, c.audience):
		return k.fail(CauseAudience, "is for another audience: only those in delegation_audiences let callers act for a person")
	case c.tenant != d.Tenant:
		return k.fail(CauseTenant, "is of another tenant of its issuer")
	}
	if err := k.checkTimes(c, t.At); err != nil {
		return err
	}
	if err := p.checkActor(k, c, t); err != nil {
		return err
	}
	return k.checkConfirmation(c.raw["cnf"], t)
}

// checkTimes returns a Failure unless the token is valid at now and expires soon. The
// provider's clock may be ahead.
func (k subjectKind) checkTimes(c *subjectClaims, now time.Time) error {
	switch {
	case !now.Before(c.expires):
		return k.fail(CauseExpired, "has expired: get a new one from the provider")
	case c.issued.After(now.Add(iatLeeway)) || c.notBefore.After(now.Add(iatLeeway)):
		return k.fail(CauseNotYetValid, "is not valid yet: compare the clocks of the provider and the broker")
	case c.expires.Sub(now) > k.lifetime+iatLeeway || !c.issued.Before(c.expires):
		return k.fail(CauseLifetime, "is valid for longer than "+broker.FormatDuration(k.lifetime)+": let the provider issue shorter ones")
	}
	return nil
}

// checkActor returns a Failure unless the token lets this caller act: the caller is the client
// that it was issued to, and the actor in may_act and act (RFC 8693, sections 4.1 and 4.4), if
// it has these.
func (p *provider) checkActor(k subjectKind, c *subjectClaims, t *broker.SubjectToken) error {
	switch {
	case !p.isClient(c.client, t.Actor.ID):
		return k.fail(CauseActor, "was issued to another client: the operator maps clients to SPIFFE IDs in attest.people")
	case t.ClientID != "" && t.ClientID != t.Actor.ID && t.ClientID != c.client:
		return k.fail(CauseActor, "was issued to another client than client_id")
	}
	for _, name := range []string{"may_act", "act"} {
		if raw := c.raw[name]; raw != nil && !p.names(raw, t.Actor) {
			return k.fail(CauseActor, "names another actor in "+name)
		}
	}
	return nil
}

// isClient reports whether a caller is an OAuth client of the provider.
func (p *provider) isClient(client, caller string) bool {
	covers := func(under string) bool { return broker.WorkloadLabels{Under: under}.Covers(caller) }
	return client == caller || slices.ContainsFunc(p.cfg.Delegation.Clients[client], covers)
}

// names reports whether the value of may_act or act identifies the caller: by its SPIFFE ID or
// as an OAuth client of the provider. All of its members must fit, and the broker must know
// them: one that it ignored could name someone else.
func (p *provider) names(raw []byte, caller broker.Identity) bool {
	members, err := strictjson.Object(raw, maxDepth)
	if err != nil || members["sub"] == nil && members["client_id"] == nil {
		return false
	}
	for name, value := range members {
		switch name {
		case "sub", "client_id":
			if id := text(value); id == "" || !p.isClient(id, caller.ID) {
				return false
			}
		case "iss": // of sub
			if issuer := text(value); issuer != p.cfg.Issuer && issuer != "spiffe://"+caller.TrustDomain {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// checkConfirmation returns a Failure unless the caller proved to have the key that the token
// is bound to (RFC 7800): that of DPoP (RFC 9449, section 6.1) or of its certificate (RFC
// 8705, section 3.1).
func (k subjectKind) checkConfirmation(raw []byte, t *broker.SubjectToken) error {
	if raw == nil {
		return nil
	}
	members, err := strictjson.Object(raw, maxDepth)
	if err != nil || len(members) == 0 {
		return k.fail(CauseMalformed, "has a malformed cnf")
	}
	for name, value := range members {
		proven := audit.Digest{}
		switch name {
		case "jkt":
			proven = t.Key
		case "x5t#S256":
			proven = t.Certificate
		}
		if proven == (audit.Digest{}) || text(value) != base64.RawURLEncoding.EncodeToString(proven[:]) {
			return k.fail(CausePossession, "is bound to a key: proof of possession is required")
		}
	}
	return nil
}

// delegation returns what a verified token proves.
func (p *provider) delegation(k subjectKind, c *subjectClaims, who broker.Identity, t *broker.SubjectToken) (d *broker.Delegation, err error) {
	d = &broker.Delegation{Subject: who, Scopes: c.scopes, MayAct: []string{t.Actor.ID}}
	if k.method == broker.MethodIDJAG {
		d.ID, d.IDUntil = c.issuer+" "+c.id, c.expires.Add(iatLeeway)
	}
	d.Resource, err = p.resource(k, c, t)
	return d, err
}

// resource returns the only resource that the caller may use the token for; empty: any. A
// token for the broker itself is for any.
func (p *provider) resource(k subjectKind, c *subjectClaims, t *broker.SubjectToken) (string, error) {
	switch broker := strings.TrimSuffix(p.cfg.Delegation.Audience, "/"); {
	case c.resources == nil || slices.Contains(c.resources, broker) || slices.Contains(c.resources, broker+"/"):
		return "", nil
	case slices.Contains(c.resources, t.Resource):
		return t.Resource, nil
	case len(c.resources) == 1:
		return c.resources[0], nil // the domain compares it with the request
	case t.Resource == "":
		return "", k.fail(CauseResource, "is for several resources: name one in resource")
	}
	return "", k.fail(CauseResource, "is for other resources")
}
