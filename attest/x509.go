package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"accessbroker.internal/broker"
)

func x509Failure(cause Cause, detail string) error {
	return &Failure{broker.MethodX509SVID, cause, detail}
}

// verifyX509 verifies a chain, leaf first. It checks the fields of the leaf before
// the signatures, so that most mistakes get a specific cause.
func verifyX509(trusted *trust, chain []*x509.Certificate, now time.Time) (cachedProof, error) {
	if len(chain) == 0 {
		return cachedProof{}, x509Failure(CauseMalformed, "the connection has no client certificate: connect with an X.509-SVID")
	}
	leaf := chain[0]
	id, err := checkLeaf(leaf)
	if err != nil {
		return cachedProof{}, err
	}
	if err := checkValidity(leaf.NotBefore, leaf.NotAfter, now); err != nil {
		return cachedProof{}, err
	}
	ends, err := verifyChain(id, chain, trusted, now)
	if err != nil {
		return cachedProof{}, err
	}
	proof := broker.Proof{Method: broker.MethodX509SVID, SHA256: sha256.Sum256(leaf.Raw), Expires: ends}
	return cachedProof{who: identity(id, proof), generation: trusted.generation, notBefore: leaf.NotBefore}, nil
}

// checkLeaf checks a leaf certificate against X509-SVID, sections 2 to 5, and
// returns its SPIFFE ID.
func checkLeaf(leaf *x509.Certificate) (spiffeid.ID, error) {
	id, err := leafID(leaf)
	switch {
	case err != nil:
		return id, x509Failure(CauseSPIFFEID, "the certificate "+err.Error())
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return id, x509Failure(CauseUsage, "the certificate is a CA certificate: connect with a leaf (X509-SVID, section 5.2)")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return id, x509Failure(CauseUsage, "the certificate lacks the key usage digitalSignature (X509-SVID, section 4.3)")
	case !allowsClientAuth(leaf):
		return id, x509Failure(CauseUsage, "the certificate is not for TLS clients: its extended key usage needs clientAuth (X509-SVID, section 4.4)")
	}
	return id, nil
}

// checkValidity returns a Failure unless now is in [notBefore, ends).
func checkValidity(notBefore, ends, now time.Time) error {
	switch {
	case !now.Before(ends):
		return x509Failure(CauseExpired, "the X.509-SVID, or a certificate above it, has expired: connect again with a new one")
	case now.Before(notBefore):
		return x509Failure(CauseNotYetValid, "the X.509-SVID is not valid yet: compare the clocks of its issuer and of the broker")
	}
	return nil
}

func allowsClientAuth(leaf *x509.Certificate) bool {
	if len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// leafID returns the SPIFFE ID of a leaf, which must be its only URI SAN
// (X509-SVID, section 2).
func leafID(leaf *x509.Certificate) (spiffeid.ID, error) {
	switch uris, err := uriNames(leaf); {
	case err != nil:
		return spiffeid.ID{}, err
	case len(uris) == 0:
		return spiffeid.ID{}, errors.New("has no SPIFFE ID: an X.509-SVID has exactly one URI SAN")
	case len(uris) > 1:
		return spiffeid.ID{}, errors.New("has more than one URI SAN: an X.509-SVID has exactly one")
	default:
		id, err := workloadID(uris[0])
		if err != nil {
			err = errors.New("has a URI SAN that " + err.Error())
		}
		return id, err
	}
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// uriNames returns the URI SANs as they were signed. crypto/x509 parses them with
// net/url, which normalizes: it lower-cases the scheme and drops an empty fragment,
// so that an ID which is not valid would become valid.
func uriNames(leaf *x509.Certificate) ([]string, error) {
	var uris []string
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(e.Value, &names); err != nil || len(rest) > 0 {
			return nil, errors.New("has malformed subject alternative names")
		}
		for _, n := range names {
			if n.Class != asn1.ClassContextSpecific || n.Tag != 6 {
				continue
			}
			// uniformResourceIdentifier [6] IA5String (RFC 5280, section 4.2.1.6). DER has
			// no constructed strings, and crypto/x509 ignores them.
			if n.IsCompound || bytes.ContainsFunc(n.Bytes, func(r rune) bool { return r > unicode.MaxASCII }) {
				return nil, errors.New("has a malformed URI in its subject alternative names")
			}
			uris = append(uris, string(n.Bytes))
		}
	}
	return uris, nil
}

// verifyChain verifies the chain to an authority of the trust domain of id. It
// returns when the chain ends, which is the earliest NotAfter on the path. If
// several paths lead to an authority, the one that ends last counts.
func verifyChain(id spiffeid.ID, chain []*x509.Certificate, trusted *trust, now time.Time) (ends time.Time, err error) {
	td := id.TrustDomain()
	if !trusted.listed[td] {
		return ends, x509Failure(CauseTrustDomain, "workloads of this trust domain may not authenticate: ask the operator to list it in attest.trust_domains")
	}
	if trusted.x509[td] == nil {
		return ends, x509Failure(CauseNoBundle, "the broker has no X.509 authorities of this trust domain: ask the operator to check the broker's log")
	}
	verified, paths, err := x509svid.Verify(chain, trusted, x509svid.WithTime(now))
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return ends, x509Failure(CauseExpired, "a certificate above the X.509-SVID has expired or is not valid yet: connect again with a new X.509-SVID")
	}
	if err != nil || verified != id {
		return ends, x509Failure(CauseUntrusted, "the certificate does not chain to an authority in the bundle of its trust domain: send the intermediates too, or fetch a new X.509-SVID")
	}
	for _, path := range paths {
		if end := firstExpiry(path); end.After(ends) {
			ends = end
		}
	}
	return ends, checkValidity(chain[0].NotBefore, ends, now)
}

func firstExpiry(path []*x509.Certificate) time.Time {
	end := path[0].NotAfter
	for _, c := range path[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// identity returns the identity of a workload, without labels: the broker adds
// those of the rules in force.
func identity(id spiffeid.ID, proof broker.Proof) broker.Identity {
	return broker.Identity{
		ID:          id.String(),
		TrustDomain: id.TrustDomain().Name(),
		Paths:       broker.SPIFFEPaths(id.String()),
		Kind:        broker.KindWorkload,
		Attested:    broker.AttestedSPIFFE,
		Proof:       proof,
	}
}
