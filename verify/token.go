package verify

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"strings"
	"time"
)

// A Presentation is how a caller presents a token. The zero value is a bearer token over a
// connection without a client certificate.
type Presentation struct {
	// Scheme is the authentication scheme: "Bearer", or "DPoP" with a proof. Empty: Bearer.
	Scheme string

	// Certificate is the client certificate of the connection, whose key the TLS handshake
	// proved; nil: none.
	Certificate *x509.Certificate

	// Proof is the DPoP proof, and Method and URL are those of the call, without query and
	// fragment.
	Proof, Method, URL string
}

const (
	schemeBearer = "Bearer"
	schemeDPoP   = "DPoP"
)

// Token checks a token that was presented for a call that needs scopes. Services that speak
// HTTP use Request or Handler.
func (v *Verifier) Token(ctx context.Context, token string, p Presentation, scopes ...string) (*Claims, error) {
	now := v.cfg.Now()
	j, err := parseJWS(token, maxToken, issuerAlgorithms)
	if err != nil {
		return nil, invalid("%v", err)
	}
	if j.typ != "at+jwt" { // RFC 9068, section 4: no other JWT of the issuer is an access token
		return nil, invalid("it is not an access token")
	}
	key, err := v.keys.find(ctx, j.header.textOf("kid"))
	if err != nil {
		return nil, err
	}
	if err := j.verify(key); err != nil {
		return nil, invalid("%v", err)
	}
	c, err := v.readClaims(j.claims, now)
	if err != nil {
		return nil, err
	}
	proof, err := v.checkBinding(c, token, p, now)
	if err != nil {
		return nil, err
	}
	// The status comes after everything else (section 8.3 of the draft).
	if err := v.checkStatus(ctx, c, token, now); err != nil {
		return nil, err
	}
	if proof != nil {
		if err := v.useProof(ctx, proof); err != nil {
			return nil, err
		}
	}
	if !c.Has(scopes...) {
		return nil, ErrInsufficientScope
	}
	return c, nil
}

// checkBinding checks that the caller has the keys to which the token is bound. It returns
// the DPoP proof, which is not used yet.
func (v *Verifier) checkBinding(c *Claims, token string, p Presentation, now time.Time) (*proof, error) {
	if c.Bound.IsZero() && v.cfg.RequireBinding {
		return nil, invalid("it is not bound to a key")
	}
	switch {
	case c.Bound.Key != "" && p.Scheme != schemeDPoP: // RFC 9449, section 7.2
		return nil, invalid("it is bound to a DPoP key: use the scheme DPoP and a proof")
	case c.Bound.Key == "" && p.Scheme == schemeDPoP:
		return nil, invalid("it is not bound to a DPoP key: use the scheme Bearer")
	case p.Scheme != schemeDPoP && p.Scheme != schemeBearer && p.Scheme != "":
		return nil, invalid("the scheme is not known")
	}
	if c.Bound.Certificate != "" {
		if err := v.checkCertificate(c.Bound, p.Certificate); err != nil {
			return nil, err
		}
	}
	if c.Bound.Key == "" {
		return nil, nil
	}
	return v.checkProof(c.Bound.Key, token, p, now)
}

// checkCertificate checks the client certificate (RFC 8705, section 3).
func (v *Verifier) checkCertificate(b Binding, cert *x509.Certificate) error {
	if cert == nil {
		return invalid("it is bound to a client certificate: call over TLS with that certificate")
	}
	sum := sha256.Sum256(cert.Raw)
	if subtle.ConstantTimeCompare([]byte(base64url.EncodeToString(sum[:])), []byte(b.Certificate)) == 1 {
		return nil
	}
	if v.cfg.RotatedSVIDs && b.SPIFFEID != "" && spiffeID(cert) == b.SPIFFEID {
		return nil
	}
	return invalid("it is bound to another client certificate")
}

// spiffeID returns the only URI of a certificate if it is a SPIFFE ID (X.509-SVID, section 2).
func spiffeID(cert *x509.Certificate) string {
	if len(cert.URIs) != 1 || cert.IsCA {
		return ""
	}
	if id := cert.URIs[0].String(); strings.HasPrefix(id, "spiffe://") {
		return id
	}
	return ""
}

// checkStatus checks that the token is not revoked.
func (v *Verifier) checkStatus(ctx context.Context, c *Claims, token string, now time.Time) error {
	switch {
	case v.cfg.Introspection != nil:
		return v.active.check(ctx, c, token, now)
	case c.status != nil:
		return v.lists.check(ctx, c.status, now)
	case c.hasStatus || v.cfg.RequireStatus:
		return invalid("its status can't be checked")
	}
	return nil
}
