package attest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker"
)

// Access tokens of people are remembered after their verification, as JWT-SVIDs are: an
// agent exchanges one again and again. An ID-JAG is used once, so it is not. With these
// bounds, remembered tokens usually take about 3 MB, and at most about 20 MB.
const (
	cachedSubjects   = 2048
	maxCachedSubject = 4 << 10 // bytes of the token
	maxCachedScopes  = 64
)

// A subjectToken is a token of a person. It is immutable once it is remembered.
type subjectToken struct {
	key    [sha256.Size]byte // the hash of all its bytes
	claims subjectClaims
	signed *jwks.Signed // nil: remembered

	// The provider and the keys that verified the token, and the person that it is about;
	// not set before.
	op     *provider
	keys   jwks.Generation
	person broker.Person
}

// readSubject parses a token, unless it is remembered. Nothing in the result is trustworthy
// before verifySubject.
func (p *People) readSubject(k subjectKind, token string) (*subjectToken, error) {
	if len(token) > maxIDToken {
		return nil, k.fail(CauseOversized, "is larger than 16 KiB")
	}
	key := hashOf(token)
	if s, ok := p.subjects.get(key); ok && k.method == broker.MethodAccessToken {
		return s, nil
	}
	signed, err := jwks.ParseCompact(token)
	if err != nil {
		return nil, k.fail(CauseMalformed, "is not a signed JWT in compact form")
	}
	claims, err := k.readSubjectClaims(signed)
	if err != nil {
		return nil, err
	}
	return &subjectToken{key: key, claims: claims, signed: signed}, nil
}

// verifySubject verifies the signature of a token with the keys that its provider publishes,
// and returns the person. The keys in use now count: a remembered token is verified again
// after each time that they were fetched.
func (p *People) verifySubject(ctx context.Context, k subjectKind, op *provider, s *subjectToken, t *broker.SubjectToken) (who broker.Identity, err error) {
	if _, err := op.discover(ctx, t.At); err != nil { // sets the address of the keys
		return who, err
	}
	keys, current := op.keys.remote.Generation()
	if s.op != op || !current || s.keys != keys {
		if s, err = op.verifySubject(ctx, k, s, t); err != nil {
			return who, err
		}
		if after, _ := op.keys.remote.Generation(); current && after == keys && k.method == broker.MethodAccessToken {
			p.remember(s, keys, len(t.Token))
		}
	}
	person := s.person
	person.Claimed = t.At
	return broker.Identity{
		ID: op.cfg.Name + "/" + s.claims.subject, Kind: broker.KindPerson, Person: &person,
		Proof: broker.Proof{Method: k.method, SHA256: s.key, Expires: s.claims.expires},
	}, nil
}

// verifySubject returns the token with its person.
func (p *provider) verifySubject(ctx context.Context, k subjectKind, s *subjectToken, t *broker.SubjectToken) (*subjectToken, error) {
	verified := *s
	if verified.signed == nil { // the keys that verified it are no longer the current ones
		signed, err := jwks.ParseCompact(t.Token)
		if err != nil {
			return nil, k.fail(CauseMalformed, "is not a signed JWT in compact form")
		}
		if verified.claims, err = k.readSubjectClaims(signed); err != nil {
			return nil, err
		}
		verified.signed = signed
	}
	switch err := p.keys.verify(ctx, verified.signed); {
	case errors.Is(err, broker.ErrUnavailable):
		return nil, err
	case err != nil:
		return nil, k.fail(CauseSignature, "is not signed with a key that its provider publishes")
	}
	person, err := p.subject(&verified.claims, t.At)
	if err != nil {
		return nil, k.fail(CauseClaims, "has claims about the person that the broker cannot use: "+err.Error())
	}
	verified.op, verified.person = p, *person
	return &verified, nil
}

// remember keeps a token that the keys have verified, without its bytes, and with the claims
// that each use checks.
func (p *People) remember(s *subjectToken, keys jwks.Generation, size int) {
	if size > maxCachedSubject || len(s.claims.scopes) > maxCachedScopes {
		return
	}
	kept := *s
	kept.signed, kept.keys = nil, keys
	kept.claims.raw = map[string]json.RawMessage{}
	for _, name := range []string{"cnf", "may_act", "act"} {
		if raw := s.claims.raw[name]; raw != nil {
			kept.claims.raw[name] = bytes.Clone(raw)
		}
	}
	p.subjects.put(s.key, &kept)
}

// subject returns the person of a token. Claims are those of a login, without UserInfo. Facts
// that a token does not state are not denied by it: the last known end of the person counts.
func (p *provider) subject(c *subjectClaims, now time.Time) (*broker.Person, error) {
	groups, present, err := c.groups(p.cfg.GroupsClaim)
	switch {
	case err != nil:
		return nil, err
	case !present && !p.cfg.Delegation.GroupsElsewhere:
		// A forbid on a group must not depend on what a token leaves out.
		return nil, errors.New("the claim \"" + p.cfg.GroupsClaim + "\" is missing: let the provider put it into the token, or provision the groups")
	}
	person, err := p.person(c.subject, c.personClaims, slices.Clip(groups), now)
	if err != nil {
		return nil, err
	}
	person.StatesEnd = p.cfg.EndsClaim != "" && c.raw[p.cfg.EndsClaim] != nil
	return person, nil
}
