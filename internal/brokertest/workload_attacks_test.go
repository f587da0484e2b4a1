package brokertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
)

// pod returns a token of a service account of the cluster.
func (w *workloadWorld) pod(namespace, account string) string {
	token := w.cluster.sign(w.cluster.claims(map[string]any{
		"aud": []string{w.URL}, "sub": "system:serviceaccount:" + namespace + ":" + account, "exp": time.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": account, "uid": "8b1c"}, "node": map[string]any{"name": "n1", "uid": "2"}, "pod": map[string]any{"name": account + "-0", "uid": "9"}},
	}))
	w.Secret(token)
	return token
}

const podAPI = "spiffe://k8s.acme.test/ns/payments/sa/api"

// The same refusal meets a token wherever it is sent.
func TestWorkloadTokenAttacksOverHTTP(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	tried := 0
	for name, token := range map[string]string{
		"another repository":     w.push(map[string]any{"repository": "acme/other", "repository_id": "75"}),
		"a fork":                 w.push(map[string]any{"repository": "mallory/shop", "repository_id": "99", "repository_owner": "mallory", "repository_owner_id": "13"}),
		"a pull request":         w.push(map[string]any{"ref": "refs/pull/7/merge", "event_name": "pull_request", "sub": "repo:acme/shop:pull_request", "head_ref": "x", "base_ref": "main"}),
		"a pull request's base":  w.push(map[string]any{"event_name": "pull_request_target"}),
		"another branch":         w.push(map[string]any{"ref": "refs/heads/feature"}),
		"another audience":       w.push(map[string]any{"aud": "https://vault.acme.test"}),
		"two audiences":          w.push(map[string]any{"aud": []string{w.URL, "https://vault.acme.test"}}),
		"an issuer with a slash": w.push(map[string]any{"iss": w.gitHub.url + "/"}),
		"a number for a text":    w.push(map[string]any{"repository_id": 74}),
		"a path in a claim":      w.push(map[string]any{"repository_owner_id": "65/../66"}),
		"the cluster's shape":    w.push(map[string]any{"kubernetes.io": map[string]any{"namespace": "payments", "serviceaccount": map[string]any{"name": "api"}}, "repository_id": "1"}),
		"another namespace":      w.pod("kube-system", "api"),
		"another account":        w.pod("payments", "default"),
		"a SPIFFE ID":            w.push(map[string]any{"sub": Agent}),
	} {
		tried++
		if _, err := w.with(token).WhoAmI(t.Context()); !errors.Is(err, api.Unauthenticated) {
			t.Errorf("%s on /v1: got %v", name, err)
		}
		for place, form := range map[string]url.Values{
			"subject_token":    {"grant_type": {api.GrantTokenExchange}, "subject_token": {token}, "subject_token_type": {api.TokenTypeJWT}, "audience": {"tickets-api"}, "scope": {"tickets:read"}},
			"client_assertion": {"grant_type": {api.GrantClientCredentials}, "client_assertion": {token}, "client_assertion_type": {api.AssertionTypeJWT}, "audience": {"tickets-api"}, "scope": {"tickets:read"}},
			"an access token":  {"grant_type": {api.GrantTokenExchange}, "subject_token": {token}, "subject_token_type": {api.TokenTypeAccessToken}, "audience": {"tickets-api"}, "scope": {"tickets:read"}},
			"an ID-JAG":        {"grant_type": {api.GrantJWTBearer}, "assertion": {token}, "audience": {"tickets-api"}, "scope": {"tickets:read"}},
		} {
			if status, body := w.Form(form); status != 400 && status != 401 || strings.Contains(string(body), "access_token\"") {
				t.Errorf("%s as %s: got %d %s", name, place, status, body)
			}
		}
	}
	if tried == 0 {
		t.Error("nothing was tried")
	}
	for _, r := range w.Records() {
		if r.Kind == audit.LeaseIssued || r.Kind == audit.LeaseOpened {
			t.Errorf("got the record %s", r.Kind)
		}
	}
}

// Of any number of calls with one token, one gets a credential.
func TestWorkloadTokenRaces(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	token := w.push(nil)
	var calls sync.WaitGroup
	var mu sync.Mutex
	issued, refused := 0, 0
	for n := range 16 {
		calls.Go(func() {
			c := w.with(token)
			if n%2 == 0 { // the same token, in another place
				c = w.Anonymous()
			}
			var err error
			if n%2 == 0 {
				_, err = c.Exchange(t.Context(), api.TokenRequest{SubjectToken: token, Audience: "tickets-api", Scopes: []string{"tickets:read"}})
			} else {
				_, _, err = c.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				issued++
			case errors.Is(err, api.TokenSpent):
				refused++
			default:
				t.Errorf("got %v", err)
			}
		})
	}
	calls.Wait()
	if issued != 1 || refused != 15 {
		t.Errorf("got %d credentials and %d refusals, want 1 and 15", issued, refused)
	}
	w.restart()
	if _, err := w.Anonymous().Exchange(t.Context(), api.TokenRequest{SubjectToken: token, Audience: "tickets-api", Scopes: []string{"tickets:read"}}); !errors.Is(err, api.TokenSpent) {
		t.Errorf("after a restart: got %v, want token_spent", err)
	}
	if _, err := w.Anonymous().Exchange(t.Context(), api.TokenRequest{SubjectToken: w.push(nil), Audience: "tickets-api", Scopes: []string{"tickets:read"}}); err != nil {
		t.Errorf("a new token of the same job: %v", err)
	}
}

// A token that is spent still returns its credential, and sees its request.
func TestSpentTokenReturnsCredential(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	c := w.with(w.push(nil))
	issued, _, err := c.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
	if err != nil {
		t.Fatal(err)
	}
	w.Secret(issued.Secret["token"])
	if issued.ExpiresAt.After(time.Now().Add(5 * time.Minute)) {
		t.Errorf("the credential is valid until %s, longer than the token", issued.ExpiresAt)
	}
	r, err := c.Request(t.Context(), issued.Request)
	if err != nil || r.Attested != "oidc" || r.Requester != shopDeploy {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := c.Renew(t.Context(), issued.Lease); !errors.Is(err, api.TokenSpent) {
		t.Errorf("renewing: got %v, want token_spent", err)
	}
	if _, err := c.Revoke(t.Context(), issued.Lease, ""); err != nil {
		t.Errorf("returning: %v", err)
	}
}

// Nothing that follows from a token outlives it: not the access token for /mcp, and not the
// credentials that are collected with that.
func TestWorkloadTokenBoundsEverything(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	token := w.push(nil)
	header := http.Header{"Authorization": {"Bearer " + token}}
	answer := w.sendMCP(t, header)
	if answer.status != 401 || !strings.Contains(answer.text, "an OIDC token of a workload is not an access token") || !strings.Contains(answer.text, "/oauth2/token") {
		t.Errorf("a raw token at /mcp: got %d %s", answer.status, answer.text)
	}
	got, err := w.Anonymous().Exchange(t.Context(), api.TokenRequest{SubjectToken: token, Resource: w.URL + "/mcp", Scopes: []string{"access:request", "access:list"}})
	if err != nil {
		t.Fatal(err)
	}
	w.Secret(string(got.AccessToken))
	if got.ExpiresIn > 5*60 {
		t.Errorf("the token for /mcp is valid for %d s", got.ExpiresIn)
	}
	header = http.Header{"Authorization": {"Bearer " + string(got.AccessToken)}}
	if answer := w.sendMCP(t, header); answer.status != 200 || strings.Contains(answer.text, "listed-api") {
		t.Errorf("a policy that demands an SVID does not hold at /mcp: got %d %s", answer.status, answer.text)
	}
	records := w.Records()
	last := records[len(records)-1]
	if last.Caller.Attested != "oidc" || last.Lease.Expires.After(last.Caller.Expires) {
		t.Errorf("got the record %+v of a lease until %s", last.Caller, last.Lease.Expires)
	}
}

// sendMCP lists the tools' access at the MCP endpoint.
func (w *workloadWorld) sendMCP(t *testing.T, header http.Header) (a mcpAnswer) {
	t.Helper()
	m := toolCall("list_access", `{}`)
	req, err := http.NewRequestWithContext(t.Context(), m.method, w.URL+"/mcp", strings.NewReader(m.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = m.header.Clone()
	req.Header.Set("Content-Type", "application/json")
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := w.Anonymous().HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	status, body := readAll(t, resp)
	return mcpAnswer{status: status, header: resp.Header, text: string(body)}
}

// Proofs of one call must be of one identity, and an SVID does not lend its attestation.
func TestWorkloadTokenNextToSVID(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	c := w.Client(Agent)
	token := w.push(nil)
	c.Token = func(context.Context) (string, error) { return token, nil }
	if _, err := c.WhoAmI(t.Context()); !errors.Is(err, api.TwoIdentities) {
		t.Errorf("a certificate and a token of another identity: got %v", err)
	}
	foreign := w.gitHub.sign(w.gitHub.claims(gitHub(w.URL, map[string]any{"iss": "https://unknown.acme.test"})))
	c.Token = func(context.Context) (string, error) { return foreign, nil }
	if _, err := c.WhoAmI(t.Context()); !errors.Is(err, api.TwoIdentities) {
		t.Errorf("a certificate and a token of an unknown issuer: got %v", err)
	}
	for name, form := range map[string]url.Values{
		"as jwt-spiffe": {"grant_type": {api.GrantClientCredentials}, "client_assertion": {w.push(nil)}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"}, "audience": {"tickets-api"}, "scope": {"tickets:read"}},
	} {
		status, body := w.Form(form)
		var failed api.OAuthError
		if json.Unmarshal(body, &failed) != nil || status != 401 && status != 400 || failed.Error != "invalid_client" {
			t.Errorf("%s: got %d %s, want invalid_client", name, status, body)
		}
	}
}

// The kill switch, blocks and marks apply to mapped IDs as to SVIDs.
func TestMappedIDsAreGoverned(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	issued, _, err := w.with(w.pod("payments", "api")).AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
	if err != nil {
		t.Fatal(err)
	}
	w.Secret(issued.Secret["token"])
	if _, err := w.Operator().Kill(t.Context(), api.Kill{Selector: api.Selector{Under: "spiffe://k8s.acme.test/ns/payments"}, Reason: "test", Force: true}); err != nil {
		t.Fatal(err)
	}
	c := w.with(w.pod("payments", "api"))
	if l, err := c.Lease(t.Context(), issued.Lease); err != nil || l.Status == "active" {
		t.Errorf("got the lease %+v, %v", l, err)
	}
	if _, _, err := c.AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}}); !errors.Is(err, api.Blocked) {
		t.Errorf("got %v, want blocked", err)
	}
	who, err := c.WhoAmI(t.Context())
	if err != nil || who.ID != podAPI || !who.Blocked || who.Attested != "oidc" || who.TrustDomain != "k8s.acme.test" {
		t.Errorf("got %+v, %v", who, err)
	}
	if svid, err := w.Bearer(Agent).WhoAmI(t.Context()); err != nil || svid.Attested != "spiffe" {
		t.Errorf("got %+v, %v", svid, err)
	}
}

// A permit for everyone means those with an SVID: it applies to no mapped ID, also not to one
// of the broker's own trust domain.
func TestBroadPermitsMeanSVIDs(t *testing.T) {
	t.Parallel()
	issuer := newTokenIssuer(t, "https://issuer.acme.test")
	b := startBroker(t, nil, files{
		attest: fmt.Sprintf(`
  oidc_workloads:
    own:
      issuer: %s
      trust_domain: acme.test
      shared_trust_domain: true
      jwks_file: %s
      rules: [{claims: {job: deploy}, spiffe_id: "spiffe://acme.test/batch"}, {claims: {job: named}, spiffe_id: "spiffe://acme.test/named"}]
`, issuer.url, issuer.keysFile),
		policies: `
@id("everyone") permit (principal is Workload, action == Action::"request", resource == Entitlement::"listed-api");
@id("named") permit (principal in Path::"spiffe://acme.test/named", action == Action::"request", resource == Entitlement::"listed-api");
`,
	})
	w := &workloadWorld{Broker: b}
	ask := func(c *api.Client) error {
		issued, _, err := c.AskAndCollect(t.Context(), api.Ask{Entitlement: "listed-api", Scopes: []string{"listed:read"}})
		if err == nil {
			b.Secret(issued.Secret["token"])
		}
		return err
	}
	job := func(name string) *api.Client {
		token := issuer.sign(issuer.claims(map[string]any{"aud": b.URL, "job": name}))
		b.Secret(token)
		return w.with(token)
	}
	if err := ask(b.Bearer("spiffe://acme.test/batch")); err != nil {
		t.Errorf("with an SVID: %v", err)
	}
	if err := ask(job("deploy")); !errors.Is(err, api.Denied) {
		t.Errorf("with an OIDC token: got %v, want a denial", err)
	}
	if err := ask(job("named")); err != nil {
		t.Errorf("with an OIDC token, where the permit names the path: %v", err)
	}
	// What an SVID requested is collected with an SVID, also if a token proves the same ID.
	const named = "spiffe://acme.test/named"
	r, err := b.Bearer(named).Ask(t.Context(), api.Ask{Entitlement: "listed-api", Scopes: []string{"listed:read"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := job("named").Collect(t.Context(), r.ID); !errors.Is(err, api.NeedsNewRequest) {
		t.Errorf("collecting with an OIDC token: got %v", err)
	}
	issued, err := b.Bearer(named).Collect(t.Context(), r.ID)
	if err != nil {
		t.Fatalf("collecting with an SVID: %v", err)
	}
	b.Secret(issued.Secret["token"])
}
