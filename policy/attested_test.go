package policy_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"accessbroker.internal/broker"
	"accessbroker.internal/policy"
)

// attestedAs is a query of a workload of the home domain that was attested so.
func attestedAs(a broker.Attestation) broker.Query {
	q := query(billing, "tickets-api", "tickets:read")
	q.Principal.Attested = a
	return q
}

// The engine asks anew for each attestation: what it remembers of one is not of another.
func TestDecideDependsOnAttestation(t *testing.T) {
	t.Parallel()
	const named = `permit (principal in TrustDomain::"acme.test", action == Action::"request", resource)`
	for cedar, want := range map[string]map[broker.Attestation]bool{
		named: {broker.AttestedSPIFFE: true, broker.AttestedOIDC: true, "": true},
		named + ` when { principal.attested == "spiffe" }`:                                         {broker.AttestedSPIFFE: true, broker.AttestedOIDC: false, "": false},
		named + ` when { principal.attested == "oidc" }`:                                           {broker.AttestedSPIFFE: false, broker.AttestedOIDC: true, "": false},
		named + ` unless { principal.attested == "oidc" }`:                                         {broker.AttestedSPIFFE: true, broker.AttestedOIDC: false, "": true},
		`permit (principal, action == Action::"request", resource)`:                                {broker.AttestedSPIFFE: true, broker.AttestedOIDC: false, "": true},
		`permit (principal is Workload, action == Action::"request", resource)`:                    {broker.AttestedSPIFFE: true, broker.AttestedOIDC: false, "": true},
		`permit (principal == Workload::"` + billing + `", action == Action::"request", resource)`: {broker.AttestedSPIFFE: true, broker.AttestedOIDC: true, "": true},
	} {
		e := loadText(t, `@id("p") `+cedar+`;`)
		for range 2 { // the second time, decisions are remembered
			for attested, permit := range want {
				if got := decide(t, e, attestedAs(attested)).Permit; got != permit {
					t.Errorf("%s for %q: got %t, want %t", cedar, attested, got, permit)
				}
			}
		}
	}
}

// A forbid applies to everyone, and people have no attestation.
func TestForbidDemandsAttestation(t *testing.T) {
	t.Parallel()
	e := loadText(t, `
@id("p") permit (principal in TrustDomain::"acme.test", action == Action::"request", resource);
@id("people") permit (principal is Person, action == Action::"request", resource);
@id("svids") forbid (principal, action == Action::"request", resource) when { principal has attested && principal.attested != "spiffe" };
`)
	for attested, want := range map[broker.Attestation]bool{broker.AttestedSPIFFE: true, broker.AttestedOIDC: false, "": false} {
		if got := decide(t, e, attestedAs(attested)); got.Permit != want {
			t.Errorf("%q: got %+v", attested, got)
		}
	}
	if d := decide(t, e, query("login/ana", "tickets-api", "tickets:read")); !d.Permit {
		t.Errorf("a person: got %+v", d)
	}
}

func TestAttestationIsWarnedOf(t *testing.T) {
	t.Parallel()
	const head = `@id("p") permit (principal in TrustDomain::"acme.test", action == Action::"request", resource) when { principal.attested == `
	for literal, want := range map[string]string{`"spiffe"`: "", `"oidc"`: "", `"oicd"`: `did you mean "oidc"?`, `"svid"`: "write spiffe or oidc"} {
		text := strings.Join(loadText(t, head+literal+" };").Warnings(), "\n")
		if (want == "") != !strings.Contains(text, "attestation") || !strings.Contains(text, want) {
			t.Errorf("%s: got the warnings %q, want %q", literal, text, want)
		}
	}
}

// What is not known of an identity follows from its trust domain.
func TestAssumedAttestation(t *testing.T) {
	t.Parallel()
	in := inputs(fstest.MapFS{
		"a.cedar":     {Data: []byte(`@id("ci") permit (principal in TrustDomain::"ci.acme.test", action == Action::"request", resource) when { principal.attested == "oidc" };`)},
		"groups.yaml": {Data: []byte(groupsText)},
		"a_test.yaml": {Data: []byte(`scenarios:
  - {name: a job, principal: "spiffe://ci.acme.test/shop", entitlement: tickets-api, scopes: ["tickets:read"], expect: permit}
  - {name: an SVID of the domain, principal: "spiffe://ci.acme.test/shop", attested: spiffe, entitlement: tickets-api, scopes: ["tickets:read"], expect: deny}
  - {name: an SVID, principal: "spiffe://acme.test/shop", entitlement: tickets-api, scopes: ["tickets:read"], expect: deny}
`)},
	})
	in.TrustDomains, in.OIDCDomains = append(in.TrustDomains, "ci.acme.test"), []string{"ci.acme.test"}
	e, err := policy.Load(in)
	if err != nil {
		t.Fatal(err)
	}
	report, err := policy.Test(t.Context(), e, in.FS)
	if err != nil || report.Ran != 3 || len(report.Failures) != 0 {
		t.Errorf("got %+v, %v", report, err)
	}
	who, err := e.ParsePrincipal("spiffe://ci.acme.test/shop")
	if err != nil || who.Attested != broker.AttestedOIDC {
		t.Errorf("got %+v, %v", who, err)
	}
	if list, _ := e.Permits(broker.Identity{ID: "spiffe://ci.acme.test/shop", Kind: broker.KindWorkload}, 10); len(list) != 1 {
		t.Errorf("got %d permits, want 1", len(list))
	}
	for text, want := range map[string]string{"": "oidc", "spiffe": "spiffe", "oidc": "oidc", "svid": "", "OIDC": ""} {
		if got, err := e.ParseAttestation(who, text); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
	if _, err := e.ParseAttestation(broker.Identity{ID: "login/ana", Kind: broker.KindPerson}, "oidc"); err == nil {
		t.Error("a person is attested")
	}
}

func TestExplainNamesAttestation(t *testing.T) {
	t.Parallel()
	e := loadText(t, `@id("p") permit (principal, action == Action::"request", resource);`)
	text := e.Explain(t.Context(), attestedAs(broker.AttestedOIDC), noon).String()
	if !strings.Contains(text, "as it must for a workload without an SVID") {
		t.Errorf("got %s", text)
	}
}
