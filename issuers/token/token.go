// Package token issues and inspects JWT access tokens that the broker signs
// itself, and manages the signing keys.
package token

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// Issuer issues JWT access tokens (RFC 9068) that the broker signs itself. Only
// time ends them for those who verify them by key; introspection tells the
// truth at once. It is safe for concurrent use.
type Issuer struct {
	issuer   string
	audience string
	keys     *Keys
}

var (
	_ broker.Minter    = (*Issuer)(nil)
	_ broker.Inspector = (*Issuer)(nil)
	_ broker.Describer = (*Issuer)(nil)
)

// New returns an issuer of tokens by "issuer" (the broker's external URL)
// for one audience.
func New(issuer, audience string, keys *Keys) *Issuer {
	return &Issuer{issuer, audience, keys}
}

// Prepare has nothing to prepare: a token ends by time.
func (*Issuer) Prepare(context.Context, broker.Order) (broker.Prepared, error) {
	return broker.Prepared{}, nil
}

// Issue is Mint.
func (t *Issuer) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	c, err := t.Mint(ctx, o.Lease)
	return c, nil, err
}

// Revoke says that only time ends a token. That it was given back is what
// introspection says, from the lease.
func (*Issuer) Revoke(_ context.Context, l broker.Lease) error {
	if len(l.Handle) > 0 {
		return broker.ForeignLease(l)
	}
	return broker.ErrNotRevocable
}

// Owns reports whether this issuer can end the lease. A lease without a handle
// ends only at its expiry, under any issuer.
func (*Issuer) Owns(l broker.Lease) bool { return len(l.Handle) == 0 }

// Describe names the audience of the token and its scopes.
func (t *Issuer) Describe(_ *broker.Entitlement, scopes []string, _ map[string]string) string {
	return fmt.Sprintf("a token for %s\nscope: %s", t.audience, strings.Join(scopes, " "))
}

// Mint signs a token for the lease. It ends with the lease, to the second.
func (t *Issuer) Mint(_ context.Context, l broker.Lease) (broker.Credential, error) {
	key := t.keys.current(l.Opened)
	if key == nil {
		return broker.Credential{}, fmt.Errorf("%w: no signing key is in use yet", broker.ErrIssuerUnavailable)
	}
	claims := t.claims(&l)
	b := make([]byte, 0, len(key.header)+base64.RawURLEncoding.EncodedLen(len(claims))+512)
	b = append(append(b, key.header...), '.')
	b = base64.RawURLEncoding.AppendEncode(b, claims)
	signature, err := key.method.Sign(string(b), key.signer)
	if err != nil {
		return broker.Credential{}, fmt.Errorf("signing a token: %w", err)
	}
	b = base64.RawURLEncoding.AppendEncode(append(b, '.'), signature)
	return broker.Credential{
		Type:    "bearer",
		Secret:  broker.NewSecret(map[string]string{"token": string(b)}),
		Expires: l.Expires,
		Hash:    sha256.Sum256(b),
	}, nil
}

// claims are those of RFC 9068, section 2.2, and ours: entitlement, request, for
// bound tokens cnf (RFC 8705, section 3.1), and the parameters of entitlements
// that have some as authorization_details (RFC 9396, section 9.1). Times are whole
// seconds, rounded so that the token never lives longer than its lease.
func (t *Issuer) claims(l *broker.Lease) []byte {
	b := make([]byte, 0, 768)
	b = appendMember(b, '{', "aud", t.audience)
	if len(l.Parameters) > 0 {
		// What was decided on and approved must bind the token, too.
		b = append(b, `,"authorization_details":[{"parameters":`...)
		b = audit.AppendStrings(b, l.Parameters)
		b = append(appendMember(b, ',', "type", l.Entitlement), `}]`...)
	}
	b = appendMember(b, ',', "client_id", l.Holder)
	if l.Confirm != (audit.Digest{}) {
		b = append(b, `,"cnf":{"x5t#S256":"`...)
		b = base64.RawURLEncoding.AppendEncode(b, l.Confirm[:])
		b = append(b, `"}`...)
	}
	b = appendMember(b, ',', "entitlement", l.Entitlement)
	b = strconv.AppendInt(append(b, `,"exp":`...), l.Expires.Unix(), 10)
	b = strconv.AppendInt(append(b, `,"iat":`...), l.Opened.Unix(), 10)
	b = appendMember(b, ',', "iss", t.issuer)
	b = appendMember(b, ',', "jti", l.ID.String())
	b = appendMember(b, ',', "request", l.Request.String())
	if len(l.Scopes) > 0 {
		b = appendMember(b, ',', "scope", strings.Join(l.Scopes, " "))
	}
	b = appendMember(b, ',', "sub", l.Holder)
	return append(b, '}')
}

func appendMember(b []byte, sep byte, key, value string) []byte {
	b = append(b, sep)
	b = audit.AppendString(b, key)
	return audit.AppendString(append(b, ':'), value)
}

// maxInspected bounds a token that is inspected, in bytes.
const maxInspected = 16 << 10

// Inspect gives the lease of one of this issuer's tokens. It verifies
// everything but the time; whatever does not hold is broker.ErrNotFound.
func (t *Issuer) Inspect(_ context.Context, token string) (broker.LeaseID, error) {
	if len(token) > maxInspected {
		return broker.LeaseID{}, errNotOurs
	}
	var claims struct {
		jwt.RegisteredClaims
		Audience string `json:"aud"`
	}
	parser := jwt.NewParser(jwt.WithoutClaimsValidation(), jwt.WithValidMethods([]string{"ES256", "RS256", "EdDSA"}))
	if _, err := parser.ParseWithClaims(token, &claims, t.keyOf); err != nil {
		return broker.LeaseID{}, errNotOurs
	}
	if claims.Issuer != t.issuer || claims.Audience != t.audience {
		return broker.LeaseID{}, errNotOurs
	}
	return broker.ParseLeaseID(claims.ID)
}

// errNotOurs says nothing of why: whoever asks has no business to know.
var errNotOurs = fmt.Errorf("%w: not a token of this issuer", broker.ErrNotFound)

// keyOf finds the key that a token names, and holds the token to the key's own
// algorithm and to the type of access tokens (RFC 8725, sections 3.1, 3.11).
func (t *Issuer) keyOf(token *jwt.Token) (any, error) {
	for _, key := range t.keys.published(time.Now()) {
		if token.Header["kid"] == key.kid && token.Method.Alg() == key.row.Algorithm && token.Header["typ"] == "at+jwt" {
			return key.signer.Public(), nil
		}
	}
	return nil, errors.New("no such key")
}
