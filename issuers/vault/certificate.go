package vault

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"accessbroker.internal/broker"
)

// certificate returns an X.509 certificate as a credential. It refuses one that
// outlives its lease, has a name that was not requested, or is an authority. If
// the certificate has no lease, the handle gets its mount and serial number.
func certificate(fields map[string]string, l *broker.Lease, sent request, revocation broker.Revocation, h *handle) (broker.Credential, error) {
	block, _ := pem.Decode([]byte(fields["certificate"]))
	if block == nil {
		return broker.Credential{}, fmt.Errorf("%w: the answer's certificate is not PEM", broker.ErrIssuerRefused)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return broker.Credential{}, fmt.Errorf("%w: the answer's certificate can't be parsed", broker.ErrIssuerRefused)
	}
	// Before any refusal: a refused certificate must be revocable.
	if mount := pkiMount(sent.path); mount != "" && revocation != broker.RevokedImmediate {
		h.Mount, h.Serial = mount, serial(leaf.SerialNumber)
	}
	if leaf.IsCA {
		return broker.Credential{}, fmt.Errorf("%w: the certificate is an authority: its holder could issue certificates that nothing revokes", broker.ErrIssuerRefused)
	}
	if leaf.NotAfter.After(l.Expires.Add(maxOutlive)) {
		return broker.Credential{}, errOutlives("the certificate", leaf.NotAfter)
	}
	if name, found := unrequested(leaf, sent.data); found {
		return broker.Credential{}, fmt.Errorf("%w: the certificate names %q, which was not requested: set use_csr_common_name and use_csr_sans of its role to false, and serial_number_source to json", broker.ErrIssuerRefused, name)
	}
	return newCredential("certificate", fields, earlier(l.Expires, leaf.NotAfter), revocation), nil
}

// pkiMount returns the mount of the PKI engine whose path signs certificates: pki
// for pki/issue/web and for pki/issuer/2026/sign/web. It is empty for any other
// path.
func pkiMount(path string) string {
	parts := strings.Split(path, "/")
	at := len(parts) - 2
	if at < 1 || parts[at] != "issue" && parts[at] != "sign" {
		return ""
	}
	if at > 2 && parts[at-2] == "issuer" {
		at -= 2
	}
	return strings.Join(parts[:at], "/")
}

// serial returns a serial number as Vault writes it: 0a:1b:2c.
func serial(n *big.Int) string {
	return strings.ReplaceAll(fmt.Sprintf("% x", n.Bytes()), " ", ":")
}

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17} // RFC 5280, section 4.2.1.6
	oidCommonName     = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialNumber   = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidUserID         = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1} // RFC 4519, section 2.39
)

// unrequested returns a name in the certificate that is not in the data sent. By
// default Vault copies names from a CSR, which the requester writes. The other
// parts of the subject, such as its organization, come from the role, which
// belongs to the operator (sign-verbatim, which copies them from the CSR too, is
// not allowed).
func unrequested(leaf *x509.Certificate, sent map[string]any) (name string, found bool) {
	for _, name := range sharedNames(leaf) {
		if !requested(name, sent, "common_name", "alt_names", "uri_sans", "ip_sans") {
			return name, true
		}
	}
	for _, attribute := range leaf.Subject.Names {
		value := fmt.Sprint(attribute.Value)
		switch {
		case attribute.Type.Equal(oidSerialNumber) && !requested(value, sent, "serial_number"),
			attribute.Type.Equal(oidUserID) && !requested(value, sent, "user_ids"):
			return value, true
		}
	}
	for _, name := range otherNames(leaf) {
		if !requested(name, sent, "other_sans") {
			return name, true
		}
	}
	return "", false
}

// sharedNames returns the common names and those alternative names that
// crypto/x509 parses. Vault accepts them in several fields.
func sharedNames(leaf *x509.Certificate) []string {
	names := append(slices.Clone(leaf.DNSNames), leaf.EmailAddresses...)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for _, attribute := range leaf.Subject.Names {
		if attribute.Type.Equal(oidCommonName) {
			names = append(names, fmt.Sprint(attribute.Value))
		}
	}
	return names
}

// requested reports whether one of these fields, which are lists, has the name.
// An empty name never counts as requested.
func requested(name string, sent map[string]any, fields ...string) bool {
	return name != "" && slices.ContainsFunc(fields, func(field string) bool {
		list, _ := sent[field].(string)
		for element := range strings.SplitSeq(list, ",") {
			if strings.TrimSpace(element) == name {
				return true
			}
		}
		return false
	})
}

// otherNames returns the subject alternative names that crypto/x509 does not
// parse. Those that a request can contain are written like an element of
// other_sans, OID;UTF8:TEXT; the others get a text that matches no element.
func otherNames(leaf *x509.Certificate) []string {
	var out []string
	for _, extension := range leaf.Extensions {
		if !extension.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &names); err != nil || len(rest) > 0 {
			return append(out, "subjectAltName")
		}
		for _, name := range names {
			switch name.Tag {
			case 1, 2, 6, 7: // rfc822Name, dNSName, uniformResourceIdentifier, iPAddress
			case 0:
				out = append(out, otherName(name.Bytes))
			default:
				out = append(out, fmt.Sprintf("subjectAltName [%d]", name.Tag))
			}
		}
	}
	return out
}

// otherName returns an OtherName in the form of other_sans. Vault encodes its
// value as a UTF8String.
func otherName(der []byte) string {
	var id asn1.ObjectIdentifier
	var outer, inner asn1.RawValue
	rest, err := asn1.Unmarshal(der, &id)
	if err == nil {
		_, err = asn1.Unmarshal(rest, &outer)
	}
	if err == nil {
		_, err = asn1.Unmarshal(outer.Bytes, &inner)
	}
	if err != nil || inner.Tag != asn1.TagUTF8String {
		return "otherName " + id.String()
	}
	return id.String() + ";UTF8:" + string(inner.Bytes)
}

// sshCertificate returns an SSH certificate as a credential (OpenSSH,
// PROTOCOL.certkeys). It refuses one that outlives its lease, or is valid for
// principals that were not requested.
func sshCertificate(fields map[string]string, l *broker.Lease, sent request) (broker.Credential, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(fields["signed_key"]))
	cert, ok := key.(*ssh.Certificate)
	if err != nil || !ok {
		return broker.Credential{}, fmt.Errorf("%w: the answer's signed key is not an SSH certificate", broker.ErrIssuerRefused)
	}
	// A certificate without an end has the largest number there is.
	if cert.ValidBefore > uint64(l.Expires.Add(maxOutlive).Unix()) {
		return broker.Credential{}, fmt.Errorf(`%w: the certificate is valid for longer than its lease: write ttl: "${ttl}" in data`, broker.ErrIssuerRefused)
	}
	if list, ok := sent.data["valid_principals"].(string); ok {
		names := strings.Split(list, ",")
		for _, name := range cert.ValidPrincipals {
			if !slices.Contains(names, name) {
				return broker.Credential{}, fmt.Errorf("%w: the certificate names %q, which was not requested", broker.ErrIssuerRefused, name)
			}
		}
	}
	if len(cert.ValidPrincipals) == 0 {
		return broker.Credential{}, fmt.Errorf("%w: the certificate names no principal, and so is valid for all of them: write valid_principals in data", broker.ErrIssuerRefused)
	}
	return newCredential("data", fields, earlier(l.Expires, time.Unix(int64(cert.ValidBefore), 0)), broker.RevokedAtExpiry), nil
}
