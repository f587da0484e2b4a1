package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/softkey"
)

// FuzzBundle reads arbitrary bundles, which for a federated domain come from others.
// go-spiffe is the oracle: the broker trusts no authority that go-spiffe does not
// find in a bundle that it can read.
func FuzzBundle(f *testing.F) {
	ca := newCA(f, "acme.test")
	content := must(ca.Bundle())
	keys, own := keysOf(f, content)
	f.Add(content)
	for _, list := range oddKeys(f, own) {
		for _, odd := range list {
			f.Add(asBundle(f, append([]jwk{odd}, keys...)...))
		}
	}
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte(`{"keys":[],"keys":[]}`))
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	f.Fuzz(func(t *testing.T, content []byte) {
		b, err := parseBundle(td, content)
		if err != nil {
			return
		}
		if b.domain != td || b.x509.TrustDomain() != td || b.refresh < 0 {
			t.Fatalf("%q: got %+v", content, b)
		}
		for _, c := range b.x509.X509Authorities() {
			if !c.IsCA {
				t.Fatalf("%q: trusts a leaf", content)
			}
		}
		for id, list := range b.jwt {
			if id == "" || len(list) == 0 || list[0].ID != id || !slices.ContainsFunc(algorithms, list[0].Allows) {
				t.Fatalf("%q: trusts the JWT authority %q", content, id)
			}
		}
		oracle, err := spiffebundle.Parse(td, content)
		if err != nil || bytes.Contains(content, []byte("-----BEGIN ")) {
			return
		}
		for _, c := range b.x509.X509Authorities() {
			if !oracle.HasX509Authority(c) {
				t.Fatalf("%q: trusts an X.509 authority that go-spiffe does not find", content)
			}
		}
		for id := range b.jwt {
			if !oracle.HasJWTAuthority(id) {
				t.Fatalf("%q: trusts the JWT authority %q, which go-spiffe does not find", content, id)
			}
		}
	})
}

// FuzzWorkloadAPIBundles reads arbitrary bundles of a Workload API.
func FuzzWorkloadAPIBundles(f *testing.F) {
	ca := newCA(f, "acme.test")
	td := spiffeid.RequireTrustDomainFromString("acme.test")
	b := must(parseBundle(td, must(ca.Bundle())))
	f.Add(b.x509.X509Authorities()[0].Raw)
	f.Add([]byte{0x30, 0})
	f.Add([]byte(`{"keys":[{"kty":"EC","kid":"a"}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		if b, err := parseDER(td, content); err == nil && len(content) > 0 && b.x509.Empty() && len(b.leftOut) == 0 {
			t.Fatalf("%x: got nothing, and nothing is left out", content)
		}
		if b, err := parseJWTBundle(td, content); err == nil && !b.x509.Empty() {
			t.Fatalf("%q: got X.509 authorities", content)
		}
	})
}

// FuzzSAN reads arbitrary subject alternative names. crypto/x509 is the oracle: a
// certificate that it parses has the same URIs, and one that it refuses never gets
// that far.
func FuzzSAN(f *testing.F) {
	add := func(class, tag int, compound bool, uris ...string) {
		var raw []asn1.RawValue
		for _, u := range uris {
			raw = append(raw, asn1.RawValue{Class: class, Tag: tag, IsCompound: compound, Bytes: []byte(u)})
		}
		f.Add(must(asn1.Marshal(raw)))
	}
	add(2, 6, false, triage)
	add(2, 6, true, triage)
	add(1, 6, false, triage)
	add(2, 6, false, triage, "spiffe://acme.test/operator")
	add(2, 6, false, "SPIFFE://acme.test/a%2fb")
	add(2, 6, false, "spiffe://acme.test/ä")
	add(2, 2, false, "broker.acme.test")
	f.Add(must(hex.DecodeString("3021a61f7370696666653a2f2f61742f52656e522f74522f67656e522f747269616765")))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(f, err)
	f.Fuzz(func(t *testing.T, der []byte) {
		extension := pkix.Extension{Id: oidSubjectAltName, Value: der}
		uris, err := uriNames(&x509.Certificate{Extensions: []pkix.Extension{extension}})
		for _, u := range uris {
			if err == nil && strings.ContainsFunc(u, func(r rune) bool { return r > 0x7f }) {
				t.Fatalf("%x: a URI is not ASCII", der)
			}
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<31, 0), ExtraExtensions: []pkix.Extension{extension}}
		raw, err2 := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err2 != nil {
			return
		}
		leaf, err2 := x509.ParseCertificate(raw)
		if err2 != nil {
			return
		}
		id, err2 := leafID(leaf)
		if (err != nil || len(uris) != 1) && err2 == nil {
			t.Fatalf("%x: %s, although the names are %q, %v", der, id, uris, err)
		}
		if err == nil && len(uris) != len(leaf.URIs) {
			t.Fatalf("%x: got URIs %q, crypto/x509 %q", der, uris, leaf.URIs)
		}
		if err2 == nil && (leaf.URIs[0].String() != id.String() || id.Path() == "") {
			t.Fatalf("%x: got %s, crypto/x509 %s", der, id, leaf.URIs[0])
		}
	})
}

// FuzzPersonClaims reads arbitrary claims of a person. What is read is within its bounds,
// and encoding/json reads the same.
func FuzzPersonClaims(f *testing.F) {
	for _, seed := range []string{
		`{"sub":"ana","name":"Ana","email":"ana@acme.test","groups":["dba"],"manager":"ben"}`, `{"sub":"ana","groups":null,"name":7,"email":false,"manager":"CN=Ben Roth"}`,
		`{"sub":"ana","groups":[null]}`, `{"sub":"ana","groups":"dba","_claim_names":{"groups":"x"}}`, `{"sub":"ana","SUB":"eve"}`, `{"sub":"\ud800"}`, `{"sub":"ana","hasgroups":true}`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	p := must(newProvider(ProviderConfig{Name: "login", Issuer: "https://login.acme.test", GroupsClaim: "groups", ManagerClaim: "manager"}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := parseClaims(payload)
		if err != nil {
			return
		}
		groups, _, err := c.groups("groups")
		if err != nil {
			return
		}
		sub, err := c.text("sub")
		if err != nil {
			return
		}
		who, err := p.person(sub, c, groups, time.Now())
		if err != nil {
			return
		}
		var other struct{ Sub string }
		if checkPayload(payload) == nil {
			if err := json.Unmarshal(payload, &other); err != nil || other.Sub != sub {
				t.Fatalf("%q: got sub %q, encoding/json %q, %v", payload, sub, other.Sub, err)
			}
		}
		for _, g := range who.Groups {
			if !isGroup(g) {
				t.Fatalf("%q: got the group %q", payload, g)
			}
		}
		if len(who.Name) > maxDisplay || len(who.Email) > maxDisplay || !utf8.ValidString(who.Name+who.Email) || len(who.Groups) > maxGroups {
			t.Fatalf("%q: got %+v", payload, who)
		}
		if manager, found := strings.CutPrefix(who.Manager, "login/"); who.Manager != "" && (!found || checkSubject(manager) != nil) {
			t.Fatalf("%q: got the manager %q", payload, who.Manager)
		}
	})
}

// FuzzEnrolment sends arbitrary responses of browsers. None enrols a key, because none
// answers the challenge.
func FuzzEnrolment(f *testing.F) {
	p := must(NewPasskeys("broker.acme.test", "https://broker.acme.test"))
	who := broker.Identity{ID: "login/ana", Kind: broker.KindPerson}
	f.Add([]byte(must(must(softkey.New("broker.acme.test", "https://broker.acme.test")).Create(make([]byte, 32)))))
	f.Add([]byte(`{"id":"AAAA","rawId":"AAAA","type":"public-key","response":{"clientDataJSON":"e30","attestationObject":"oA"}}`))
	f.Fuzz(func(t *testing.T, response []byte) {
		now := time.Now()
		_, state, err := p.Begin(who, nil, now)
		check(t, err)
		if made, err := p.Finish(who, state, response, now); err == nil {
			t.Fatalf("%q: enrolled %+v", response, made)
		}
	})
}
