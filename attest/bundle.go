package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"accessbroker.internal/attest/jwks"
)

// jwtKeys are JWT authorities by kid.
type jwtKeys map[string][]jwks.Key

func (k jwtKeys) equal(other jwtKeys) bool {
	return maps.EqualFunc(k, other, func(a, b []jwks.Key) bool {
		return slices.EqualFunc(a, b, func(a, b jwks.Key) bool { return a.Equal(&b) })
	})
}

// A bundle holds authorities of a trust domain. It is immutable. A Workload API
// delivers the X.509 and the JWT authorities of a domain as two bundles.
type bundle struct {
	domain  spiffeid.TrustDomain
	x509    *x509bundle.Bundle
	jwt     jwtKeys
	leftOut []jwks.LeftOut
	refresh time.Duration // how often its publisher asks for a refresh; zero: unknown
}

func newBundle(td spiffeid.TrustDomain) *bundle {
	return &bundle{domain: td, x509: x509bundle.New(td), jwt: jwtKeys{}}
}

// SPIFFE's values of use (X509-SVID, section 6.1, and JWT-SVID, section 6.1).
const (
	useX509 = "x509-svid"
	useJWT  = "jwt-svid"
)

// parseBundle parses the SPIFFE bundle format (SPIFFE Trust Domain and Bundle,
// section 4) or PEM certificates. It leaves out the keys that it can't use. A
// bundle without any usable key is valid and trusts nothing (section 4.1.3).
func parseBundle(td spiffeid.TrustDomain, content []byte) (*bundle, error) {
	if bytes.Contains(content, []byte("-----BEGIN ")) {
		return parsePEM(td, content)
	}
	return parseJWKS(td, content, useX509, useJWT)
}

// ReadBundle reads the file of a trust domain's bundle, for a check before the start. It
// describes the keys that a Source would leave out.
func ReadBundle(trustDomain, path string) (warnings []string, err error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("%q is not a trust domain: write one such as acme.test", trustDomain)
	}
	f := &bundleFile{domain: td, path: path}
	if err := f.read(); err != nil {
		return nil, err
	}
	for _, l := range f.bundle.leftOut {
		warnings = append(warnings, "left out "+l.String())
	}
	if f.bundle.x509.Empty() && len(f.bundle.jwt) == 0 {
		warnings = append(warnings, "it has no usable key, so that its workloads can't authenticate")
	}
	return warnings, nil
}

// parseJWTBundle parses a bundle of JWT authorities from a Workload API, which is a
// JWK Set without SPIFFE's use (SPIFFE Workload API, section 6.2.2).
func parseJWTBundle(td spiffeid.TrustDomain, content []byte) (*bundle, error) {
	return parseJWKS(td, content, "", "sig", useJWT)
}

func parseJWKS(td spiffeid.TrustDomain, content []byte, uses ...string) (*bundle, error) {
	set, err := jwks.Parse(content, uses...)
	if err != nil {
		return nil, err
	}
	b := newBundle(td)
	set.Filter(b.add)
	b.leftOut, b.refresh = set.LeftOut, refreshHint(set.Members["spiffe_refresh_hint"])
	return b, nil
}

// refreshHint parses a number of seconds (SPIFFE Trust Domain and Bundle, section
// 4.1.2). It ignores a malformed hint, because a bundle is valid without one.
func refreshHint(raw json.RawMessage) time.Duration {
	n, err := strconv.ParseUint(string(raw), 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// add adds a key, or returns why the key is left out.
func (b *bundle) add(k *jwks.Key) (reason jwks.Reason, detail string) {
	switch {
	case k.Use == useX509 && k.Cert == nil:
		return jwks.Certificate, "x5c is missing (X509-SVID, section 6.2)"
	case k.Use == useX509:
		return b.addAuthority(k.Cert)
	case k.ID == "":
		return jwks.NoKeyID, "kid is missing (JWT-SVID, section 6.1)"
	case !slices.ContainsFunc(algorithms, k.Allows):
		return jwks.UnknownType, "no algorithm of JWT-SVID, section 2.1, fits it"
	}
	b.jwt[k.ID] = append(b.jwt[k.ID], *k)
	return "", ""
}

// addAuthority adds an X.509 authority, or returns why it is left out.
func (b *bundle) addAuthority(c *x509.Certificate) (reason jwks.Reason, detail string) {
	if !c.IsCA {
		return jwks.Certificate, fmt.Sprintf("the certificate with serial %x is not a CA certificate: use the bundle of the trust domain, not an SVID", c.SerialNumber)
	}
	if reason, err := jwks.CheckPublic(c.PublicKey); err != nil {
		return reason, fmt.Sprintf("the certificate with serial %x: %v", c.SerialNumber, err)
	}
	b.x509.AddX509Authority(c)
	return "", ""
}

// addDER adds the certificate with an index in its file or list.
func (b *bundle) addDER(index int, der []byte) {
	reason, detail := jwks.Certificate, "the certificate is malformed"
	if c, err := x509.ParseCertificate(der); err == nil {
		reason, detail = b.addAuthority(c)
	}
	if reason != "" {
		b.leftOut = append(b.leftOut, jwks.LeftOut{Index: index, Reason: reason, Detail: detail})
	}
}

// parsePEM parses X.509 authorities. PEM has no form for a bundle that trusts nothing,
// so that a file without a usable certificate is an error.
func parsePEM(td spiffeid.TrustDomain, content []byte) (*bundle, error) {
	b := newBundle(td)
	begun, n := bytes.Count(content, []byte("-----BEGIN ")), 0
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			b.addDER(n, block.Bytes)
		} else {
			b.leftOut = append(b.leftOut, jwks.LeftOut{Index: n, Reason: jwks.Malformed, Detail: "the PEM block is not a CERTIFICATE"})
		}
		n++
	}
	for ; n < begun; n++ { // pem.Decode skips malformed blocks
		b.leftOut = append(b.leftOut, jwks.LeftOut{Index: n, Reason: jwks.Malformed, Detail: "a PEM block is malformed"})
	}
	if b.x509.Empty() {
		return nil, fmt.Errorf("it has no authority: %s", b.leftOut[0].Detail)
	}
	return b, nil
}

// parseDER parses concatenated X.509 authorities, as a Workload API delivers them.
func parseDER(td spiffeid.TrustDomain, content []byte) (*bundle, error) {
	b := newBundle(td)
	for n := 0; len(content) > 0; n++ {
		var one asn1.RawValue
		rest, err := asn1.Unmarshal(content, &one)
		if err != nil {
			return nil, errors.New("the list of X.509 authorities is malformed")
		}
		b.addDER(n, one.FullBytes)
		content = rest
	}
	return b, nil
}
