// Package token issues and inspects JWT access tokens that the broker signs
// itself, and manages the signing keys.
package token

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"

	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// accessToken is the typ of an access token (RFC 9068, section 2.1).
const accessToken = "at+jwt"

// An Issuer issues JWT access tokens (RFC 9068) for one audience. A token that
// was revoked still verifies until it expires; introspection reports it as
// inactive at once. An Issuer is safe for concurrent use.
type Issuer struct {
	target
	keys *Keys
}

var (
	_ broker.Minter    = (*Issuer)(nil)
	_ broker.Inspector = (*Issuer)(nil)
	_ broker.Describer = (*Issuer)(nil)
)

// A target is what all tokens of an issuer have in common.
type target struct{ issuer, audience string }

// New returns an issuer of tokens for an audience. The tokens' iss is issuer, the
// broker's external URL.
func New(issuer, audience string, keys *Keys) *Issuer {
	return &Issuer{target{issuer, audience}, keys}
}

// Prepare returns nothing: a token needs no handle, as it ends at its expiry.
func (*Issuer) Prepare(context.Context, broker.Order) (broker.Prepared, error) {
	return broker.Prepared{}, nil
}

// Issue mints a token for the order's lease.
func (t *Issuer) Issue(ctx context.Context, o broker.Order) (broker.Credential, []byte, error) {
	c, err := t.Mint(ctx, o.Lease)
	return c, nil, err
}

// Revoke returns ErrNotRevocable, unless the lease belongs to another issuer.
// Introspection reads the lease, and needs nothing from Revoke.
func (*Issuer) Revoke(_ context.Context, l broker.Lease) error {
	if len(l.Handle) > 0 {
		return broker.ForeignLease(l)
	}
	return broker.ErrNotRevocable
}

// Owns reports whether this issuer can end the lease. A lease without a handle
// ends only at its expiry, under any issuer.
func (*Issuer) Owns(l broker.Lease) bool { return len(l.Handle) == 0 }

// Describe shows the token's audience and scopes.
func (t *Issuer) Describe(_ *broker.Entitlement, scopes []string, _ map[string]string) string {
	return fmt.Sprintf("a token for %s\nscope: %s", t.audience, strings.Join(scopes, " "))
}

// Mint returns a token that expires with the lease. It builds the token by hand:
// it runs for every request, and golang-jwt would encode each through a map.
func (t *Issuer) Mint(_ context.Context, l broker.Lease) (broker.Credential, error) {
	key := t.keys.current(l.Opened)
	if key == nil {
		return broker.Credential{}, fmt.Errorf("%w: no signing key is in use yet", broker.ErrIssuerUnavailable)
	}
	var text [1024]byte // on the stack, as is whole; longer texts are appended on the heap
	claims := t.appendClaims(text[:0], &l)
	var whole [2048]byte
	b := append(append(whole[:0], key.header...), '.')
	b = base64.RawURLEncoding.AppendEncode(b, claims)
	signature, err := key.sign(b)
	if err != nil {
		return broker.Credential{}, fmt.Errorf("signing a token: %w", err)
	}
	b = base64.RawURLEncoding.AppendEncode(append(b, '.'), signature)
	c := broker.Credential{
		Type:    "bearer",
		Secret:  broker.NewSecretField("token", string(b)),
		Expires: l.Expires,
		Hash:    sha256.Sum256(b),
	}
	// Most tokens are introspected soon. If the lease is never stored, introspection
	// does not find it.
	t.keys.verified.put(maphash.Bytes(tokenSeed, b), inspected{c.Hash, key, &t.target, l.ID})
	return c, nil
}

// appendClaims appends the claims of RFC 9068, section 2.2, act, entitlement, request,
// cnf for bound tokens, the request's parameters and details as authorization_details (RFC 9396, section
// 9.1), and the token's place in a status list. Times are truncated to seconds,
// so that the token never outlives its lease.
func (t *Issuer) appendClaims(b []byte, l *broker.Lease) []byte {
	b = append(b, '{')
	if l.Subject != "" {
		b = append(appendAct(append(b, `"act":`...), l), ',')
	}
	b = append(audit.AppendString(b, "aud"), ':')
	b = audit.AppendString(b, t.audience)
	// Policy and approvers decided on these: they must bind the token.
	switch {
	case len(l.Parameters) > 0:
		b = append(b, `,"authorization_details":[{"parameters":`...)
		b = audit.AppendStrings(b, l.Parameters)
		b = append(appendMember(b, ',', "type", l.Entitlement), '}')
		if len(l.Details) > 0 {
			b = append(append(b, ','), broker.AppendDetails(nil, l.Details)[1:]...)
		} else {
			b = append(b, ']')
		}
	case len(l.Details) > 0:
		b = broker.AppendDetails(append(b, `,"authorization_details":`...), l.Details)
	}
	b = appendMember(b, ',', "client_id", l.Holder)
	b = appendConfirmation(b, l)
	b = appendMember(b, ',', "entitlement", l.Entitlement)
	b = strconv.AppendInt(append(b, `,"exp":`...), l.Expires.Unix(), 10)
	b = strconv.AppendInt(append(b, `,"iat":`...), l.Opened.Unix(), 10)
	b = appendMember(b, ',', "iss", t.issuer)
	b = appendMember(b, ',', "jti", l.ID.String())
	b = appendMember(b, ',', "request", l.Request.String())
	if len(l.Scopes) > 0 {
		b = appendMember(b, ',', "scope", strings.Join(l.Scopes, " "))
	}
	if !l.Listed.IsZero() {
		b = strconv.AppendUint(append(b, `,"status":{"status_list":{"idx":`...), uint64(l.Listed.Index), 10)
		b = append(appendMember(b, ',', "uri", StatusListURI(t.issuer, l.Listed.List)), "}}"...)
	}
	b = appendMember(b, ',', "sub", cmp.Or(l.Subject, l.Holder))
	return append(b, '}')
}

// appendConfirmation appends cnf: the thumbprint of the DPoP key (RFC 9449, section 6.1), or
// that of the client certificate (RFC 8705, section 3.1) with the SPIFFE ID, under which
// resource servers that verify X.509-SVIDs accept a rotated certificate.
func appendConfirmation(b []byte, l *broker.Lease) []byte {
	if l.KeyThumbprint.IsZero() && l.Confirm.IsZero() {
		return b
	}
	b = append(b, `,"cnf":`...)
	sep := byte('{')
	if !l.KeyThumbprint.IsZero() {
		b = append(append(b, sep), `"jkt":"`...)
		b = append(base64.RawURLEncoding.AppendEncode(b, l.KeyThumbprint[:]), '"')
		sep = ','
	}
	if !l.Confirm.IsZero() {
		b = append(appendMember(b, sep, "spiffe_id", l.Holder), `,"x5t#S256":"`...)
		b = append(base64.RawURLEncoding.AppendEncode(b, l.Confirm[:]), '"')
	}
	return append(b, '}')
}

// appendAct appends who acts for the subject (RFC 8693, section 4.1): the holder is the
// outermost actor, and the one that acted first the innermost.
func appendAct(b []byte, l *broker.Lease) []byte {
	for i := len(l.Actors) - 1; i >= 0; i-- {
		// Keys are sorted, so the inner actor comes first: its text is written below.
		b = append(b, `{"act":`...)
	}
	for i := range len(l.Actors) + 1 {
		who := l.Holder
		if i < len(l.Actors) {
			who = l.Actors[i]
		}
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		b = append(appendMember(b, sep, "sub", who), '}')
	}
	return b
}

func appendMember(b []byte, sep byte, key, value string) []byte {
	b = append(b, sep)
	b = audit.AppendString(b, key)
	return audit.AppendString(append(b, ':'), value)
}
