package attest

import (
	"context"
	"errors"
	"maps"
	"slices"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// A PersonalToken is an access token (RFC 9068) with which a person calls a resource of the
// broker.
type PersonalToken struct {
	broker.SubjectToken        // Token, At, and the keys that the caller proved to have
	Audience            string // of the resource
}

// AccessToken returns the person who calls with an access token of a provider, and the
// scopes of the token. The resource must be the only audience: a provider that issues such
// a token to a client knows that it is for the broker. The token must state no actor,
// because the person calls for themselves.
func (p *People) AccessToken(ctx context.Context, t PersonalToken) (broker.Identity, []string, error) {
	t.Method = broker.MethodAccessToken
	who, scopes, err := p.accessToken(ctx, t)
	var failure *Failure
	if errors.As(err, &failure) { // it proves who calls, not whom the caller acts for
		err = &broker.Refusal{Err: broker.ErrUnauthenticated, Detail: failure.Detail}
	}
	return who, scopes, err
}

func (p *People) accessToken(ctx context.Context, t PersonalToken) (who broker.Identity, scopes []string, err error) {
	k := subjectKinds[broker.MethodAccessToken]
	s, err := p.readSubject(k, t.Token)
	if err != nil {
		return who, nil, err
	}
	c := &s.claims
	op := p.ofIssuer(c.issuer)
	switch {
	case op == nil:
		return who, nil, k.fail(CauseIssuer, "is of an issuer that is not a provider of the broker")
	case c.audience != t.Audience:
		return who, nil, k.fail(CauseAudience, "is for another resource: its only audience must be "+t.Audience)
	case c.tenant != op.cfg.Delegation.Tenant:
		return who, nil, k.fail(CauseTenant, "is of another tenant of its issuer")
	case c.raw["act"] != nil:
		return who, nil, k.fail(CauseActor, "is of someone who acts for a person (act)")
	}
	if err := k.checkTimes(c, t.At); err != nil {
		return who, nil, err
	}
	if err := k.checkConfirmation(c.raw["cnf"], &t.SubjectToken); err != nil {
		return who, nil, err
	}
	if !t.Key.IsZero() && !isBoundToKey(c.raw["cnf"]) {
		return who, nil, k.fail(CausePossession, "is not bound to a DPoP key: send it as Bearer")
	}
	who, err = p.verifySubject(ctx, k, op, s, &t.SubjectToken)
	return who, c.scopes, err
}

// isBoundToKey reports whether a confirmation names a DPoP key.
func isBoundToKey(raw []byte) bool {
	members, err := strictjson.Object(raw, maxDepth)
	return err == nil && members["jkt"] != nil
}

// ofIssuer returns the provider with exactly this issuer; nil: there is none.
func (p *People) ofIssuer(issuer string) *provider {
	for _, op := range p.providers {
		if op.cfg.Issuer == issuer {
			return op
		}
	}
	return nil
}

// Issues reports whether a token claims to be of one of the providers. The claim is not
// verified.
func (p *People) Issues(token string) bool {
	signed, err := jwks.ParseCompact(token)
	if len(token) > maxIDToken || err != nil {
		return false
	}
	c, err := parseClaims(signed.Payload)
	if err != nil {
		return false
	}
	issuer, err := c.text("iss")
	return err == nil && p.ofIssuer(issuer) != nil
}

// Issuers returns the issuers of the providers, sorted by the providers' names.
func (p *People) Issuers() (list []string) {
	for _, name := range slices.Sorted(maps.Keys(p.providers)) {
		list = append(list, p.providers[name].cfg.Issuer)
	}
	return list
}
