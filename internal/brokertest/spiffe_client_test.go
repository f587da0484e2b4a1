package brokertest

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

const assertionSPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

// svid returns a JWT-SVID for audiences.
func (b *Broker) svid(id string, audiences ...string) string {
	b.t.Helper()
	token, err := b.CA.JWTSVID(id, 5*time.Minute, audiences...)
	b.must(err)
	b.Secret(token)
	return token
}

// A client authenticates as draft-ietf-oauth-spiffe-client-auth-02 says, and in no other way.
func TestSPIFFEClientAuthentication(t *testing.T) {
	t.Parallel()
	b := startBroker(t, nil, files{server: `
  oauth:
    require_client_id: true
    clients:
      triage-ui: ["spiffe://acme.test/agent/triage"]
      "https://acme.test/clients/agents.json": ["spiffe://acme.test/agent/*"]
      strangers: ["spiffe://acme.test/strange/*"]
`, attest: "  audiences: [BROKER_URL, \"https://broker.acme.test/v1\"]\n"})
	const other = "https://broker.acme.test/v1"
	certified, anonymous := b.Client(Agent).HTTP, b.Anonymous().HTTP
	usual := func(more ...string) url.Values {
		f := url.Values{"grant_type": {api.GrantClientCredentials}, "audience": {"tickets-api"}, "scope": {"tickets:read"}}
		for i := 0; i < len(more); i += 2 {
			f.Set(more[i], more[i+1])
		}
		return f
	}
	asserted := func(assertion string, more ...string) url.Values {
		return usual(append([]string{"client_assertion_type", assertionSPIFFE, "client_assertion", assertion}, more...)...)
	}
	exchanged := func(subject string) url.Values {
		return url.Values{"grant_type": {api.GrantTokenExchange}, "audience": {"tickets-api"}, "scope": {"tickets:read"}, "subject_token": {subject}, "subject_token_type": {api.TokenTypeJWT}}
	}
	forOther := func(name, token string, more ...string) url.Values {
		return usual(append([]string{"grant_type", api.GrantTokenExchange, "subject_token_type", api.TokenTypeAccessToken, name, token}, more...)...)
	}
	forPerson := func(more ...string) url.Values {
		return usual(append([]string{"grant_type", api.GrantJWTBearer, "assertion", "x"}, more...)...)
	}
	twice := asserted(b.svid(Agent, b.URL))
	twice.Add("client_assertion", b.svid(Agent, b.URL))
	for name, c := range map[string]struct {
		certificate bool
		form        url.Values
		want        string // the OAuth error; empty: a token
	}{
		"an assertion":                        {false, asserted(b.svid(Agent, b.URL)), ""},
		"with the SPIFFE ID":                  {false, asserted(b.svid(Agent, b.URL), "client_id", Agent), ""},
		"with a registered client":            {false, asserted(b.svid(Agent, b.URL), "client_id", "triage-ui"), ""},
		"with a registered URL":               {false, asserted(b.svid(Agent, b.URL), "client_id", "https://acme.test/clients/agents.json"), ""},
		"with another SPIFFE ID":              {false, asserted(b.svid(Agent, b.URL), "client_id", Stranger), "invalid_client"},
		"with a SPIFFE ID below":              {false, asserted(b.svid(Agent, b.URL), "client_id", Agent+"/x"), "invalid_client"},
		"with the SPIFFE ID in another case":  {false, asserted(b.svid(Agent, b.URL), "client_id", strings.ToUpper(Agent)), "invalid_client"},
		"with another's client":               {false, asserted(b.svid(Agent, b.URL), "client_id", "strangers"), "invalid_client"},
		"a stranger as a registered client":   {false, asserted(b.svid(Stranger, b.URL), "client_id", "strangers"), "invalid_client"}, // "/strange/" is no prefix of "/stranger"
		"with a URL that is not registered":   {false, asserted(b.svid(Agent, b.URL), "client_id", "https://evil.test/client.json"), "invalid_client"},
		"for another audience of the broker":  {false, asserted(b.svid(Agent, other)), "invalid_client"},
		"for the token endpoint":              {false, asserted(b.svid(Agent, b.URL+"/oauth2/token")), "invalid_client"},
		"for the issuer with a slash":         {false, asserted(b.svid(Agent, b.URL+"/")), "invalid_client"},
		"for two audiences":                   {false, asserted(b.svid(Agent, b.URL, other)), "invalid_client"},
		"two assertions":                      {false, twice, "invalid_request"},
		"of another type":                     {false, usual("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer", "client_assertion", b.svid(Agent, b.URL)), "invalid_client"},
		"without a type":                      {false, usual("client_assertion", b.svid(Agent, b.URL)), "invalid_client"},
		"without an assertion":                {false, usual("client_assertion_type", assertionSPIFFE), "invalid_client"},
		"no JWT":                              {false, asserted("x"), "invalid_client"},
		"as RFC 7523, for another audience":   {false, usual("client_assertion_type", api.AssertionTypeJWT, "client_assertion", b.svid(Agent, other)), ""},
		"as subject, for another audience":    {false, exchanged(b.svid(Agent, other)), ""},
		"a certificate with client_id":        {true, usual("client_id", Agent), ""},
		"a certificate and its client":        {true, usual("client_id", "triage-ui"), ""},
		"a certificate without client_id":     {true, usual(), "invalid_client"},
		"a certificate of another":            {true, usual("client_id", Stranger), "invalid_client"},
		"a certificate and an assertion":      {true, asserted(b.svid(Agent, b.URL)), ""},
		"a certificate and another assertion": {true, asserted(b.svid(Stranger, b.URL)), "invalid_request"},
		"for another, without client_id":      {true, forOther("subject_token", "x"), "invalid_client"},
		"for another, with client_id":         {true, forOther("subject_token", "x", "client_id", Agent), "invalid_request"},
		"for a person, without client_id":     {true, forPerson(), "invalid_client"},
		"for a person, with client_id":        {true, forPerson("client_id", Agent), "invalid_grant"},
		"a poll as another client":            {true, forOther("request_id", "req_x", "client_id", Stranger), "invalid_client"},
		"nothing":                             {false, usual("client_id", Agent), "invalid_client"},
	} {
		client := anonymous
		if c.certificate {
			client = certified
		}
		resp, err := client.PostForm(b.URL+"/oauth2/token", c.form)
		if err != nil {
			t.Fatal(err)
		}
		status, body := readAll(t, resp)
		var got struct {
			Error       string `json:"error"`
			AccessToken string `json:"access_token"`
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		b.Secret(got.AccessToken)
		if got.Error != c.want || (status == 200) != (c.want == "") {
			t.Errorf("%s: got %d %s, want the error %q", name, status, got.Error, c.want)
		}
	}
	for _, r := range b.Records() {
		if r.Lease != nil && r.Caller != nil && r.Caller.ID != Agent {
			t.Errorf("the record names %s, not the SPIFFE ID of the caller", r.Caller.ID)
		}
	}
	d, err := b.Anonymous().Discovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]string{"token": d.TokenAuthMethods, "introspection": d.IntrospectionAuth, "revocation": d.RevocationAuth} {
		for _, method := range []string{"spiffe_jwt", "spiffe_x509"} {
			if !strings.Contains(strings.Join(list, " "), method) {
				t.Errorf("the metadata of the %s endpoint lacks %s: %v", name, method, list)
			}
		}
	}
}

// A company without SPIFFE starts with the tokens of its platforms alone.
func TestBrokerWithoutSVIDs(t *testing.T) {
	t.Parallel()
	cluster := newTokenIssuer(t, "https://kubernetes.default.svc.cluster.local")
	b := startBroker(t, nil, files{withoutSVIDs: true, attest: `
  oidc_workloads:
    cluster:
      issuer: ` + cluster.url + `
      trust_domain: k8s.acme.test
      one_time: false
      jwks_file: ` + cluster.keysFile + `
      rules: [{claims: {kubernetes.io: {namespace: payments}}, spiffe_id: "spiffe://k8s.acme.test/ns/payments/sa/${/kubernetes.io/serviceaccount/name}"}]
`, policies: `
@id("pods") permit (principal in TrustDomain::"k8s.acme.test", action == Action::"request", resource == Entitlement::"tickets-api");
`})
	w := &workloadWorld{Broker: b, cluster: cluster}
	got, err := b.Anonymous().Exchange(t.Context(), api.TokenRequest{SubjectToken: w.pod("payments", "api"), Audience: "tickets-api", Scopes: []string{"tickets:read"}})
	if err != nil {
		t.Fatal(err)
	}
	b.Secret(string(got.AccessToken))
	if ready, err := b.Anonymous().Ready(t.Context()); err != nil || !ready.Ready {
		t.Errorf("got %+v, %v", ready, err)
	}
	if _, err := w.with(b.JWT(Agent)).WhoAmI(t.Context()); err == nil {
		t.Error("an SVID is accepted without a bundle")
	}
	if _, err := b.Client(Agent).WhoAmI(t.Context()); err == nil {
		t.Error("a certificate is accepted without a bundle")
	}
	d, err := b.Anonymous().Discovery(t.Context())
	if err != nil || strings.Contains(strings.Join(d.TokenAuthMethods, " "), "spiffe") {
		t.Errorf("got %+v, %v", d, err)
	}
}
