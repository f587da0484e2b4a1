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

	"accessbroker.internal/broker"
)

// certificate holds a certificate to its lease and to what was asked for: one
// that lives longer, names somebody else, or can make others, is not given out.
// Its times are the Vault's clock, which was allowed for. The handle gets what
// tells the authority which one it is.
func certificate(fields map[string]string, l *broker.Lease, sent vaultCall, truth broker.Revocation, h *vaultHandle) (broker.Credential, error) {
	block, _ := pem.Decode([]byte(fields["certificate"]))
	if block == nil {
		return broker.Credential{}, fmt.Errorf("%w: the answer's certificate is not PEM", broker.ErrIssuerRefused)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return broker.Credential{}, fmt.Errorf("%w: the answer's certificate can't be read", broker.ErrIssuerRefused)
	}
	if mount := pkiMount(sent.path); mount != "" && truth != broker.RevokedImmediate {
		h.Mount, h.Serial = mount, serial(leaf.SerialNumber)
	}
	if leaf.IsCA {
		return broker.Credential{}, fmt.Errorf("%w: the certificate is an authority's: its holder could make others, which nobody ends", broker.ErrIssuerRefused)
	}
	if leaf.NotAfter.After(l.Expires.Add(vaultSlack)) {
		return broker.Credential{}, outlives("the certificate", leaf.NotAfter)
	}
	if name, found := unasked(leaf, sent.data); found {
		return broker.Credential{}, fmt.Errorf("%w: the certificate names %q, which was not asked for: set use_csr_common_name and use_csr_sans of its role to false, and serial_number_source to json", broker.ErrIssuerRefused, name)
	}
	return seal("certificate", fields, earlier(l.Expires, leaf.NotAfter, true), truth), nil
}

// vaultSlack is by how much what was made for a lease may outlive it: clocks
// are read, and times are said, to the second.
const vaultSlack = 2 * time.Second

func outlives(what string, until time.Time) error {
	return fmt.Errorf(`%w: %s lives until %s, which is longer than its lease: write ttl: "${ttl}" in data`, broker.ErrIssuerRefused, what, until.UTC().Format(time.RFC3339))
}

// pkiMount gives the mount of the engine whose path signs a certificate: pki of
// pki/issue/web and of pki/issuer/2026/sign/web. It is empty if the path is
// none of these.
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

// serial writes a serial number as Vault does: 0a:1b:2c.
func serial(n *big.Int) string {
	return strings.ReplaceAll(fmt.Sprintf("% x", n.Bytes()), " ", ":")
}

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17} // RFC 5280, section 4.2.1.6
	oidCommonName     = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialNumber   = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidUserID         = asn1.ObjectIdentifier{0, 9, 2342, 19200300, 100, 1, 1} // RFC 4519, section 2.39
)

// unasked gives a name of the certificate that is not in what was sent. By
// default, a Vault that signs a CSR takes the names from that, which is the
// requester's own. What else a subject may hold, such as its organization, comes
// from the role, which is the operator's (sign-verbatim, which takes it from the
// CSR, is not used).
func unasked(leaf *x509.Certificate, sent map[string]any) (name string, found bool) {
	asked := asked(sent, "common_name", "alt_names", "uri_sans", "ip_sans")
	names := append(slices.Clone(leaf.DNSNames), leaf.EmailAddresses...)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for _, attribute := range leaf.Subject.Names {
		value := fmt.Sprint(attribute.Value)
		switch {
		case attribute.Type.Equal(oidCommonName):
			names = append(names, value)
		case attribute.Type.Equal(oidSerialNumber) && !askedFor(sent, "serial_number", value),
			attribute.Type.Equal(oidUserID) && !askedFor(sent, "user_ids", value):
			return value, true
		}
	}
	for _, name := range names {
		if !asked[name] {
			return name, true
		}
	}
	for _, name := range otherNames(leaf) {
		if !askedFor(sent, "other_sans", name) {
			return name, true
		}
	}
	return "", false
}

// asked gives what these fields of a call list.
func asked(sent map[string]any, fields ...string) map[string]bool {
	all := map[string]bool{}
	for _, field := range fields {
		text, _ := sent[field].(string)
		for name := range strings.SplitSeq(text, ",") {
			all[strings.TrimSpace(name)] = true
		}
	}
	delete(all, "")
	return all
}

func askedFor(sent map[string]any, field, value string) bool { return asked(sent, field)[value] }

// otherNames gives the subject alternative names that crypto/x509 does not, as
// other_sans writes those that it can ask for: OID;UTF8:TEXT. Whatever else
// there is has a name that nobody can ask for.
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

// otherName writes an OtherName, whose value Vault makes a UTF8String.
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
