package brokertest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
)

// bindings are entitlements and permits with every kind of demand.
var bindings = files{
	operator: `
  open-api: {issuer: tickets, scopes: [open:read], owner: support}
  key-api: {issuer: tickets, scopes: [key:read], owner: support, binding: dpop}
  either-api: {issuer: tickets, scopes: [either:read], owner: support, binding: dpop or mtls}
`,
	policies: `
@id("open") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"open-api");
@id("key") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"key-api");
@id("either") permit (principal in Path::"spiffe://acme.test/agent", action == Action::"request", resource == Entitlement::"either-api");
`,
}

func newProofKey(t testing.TB) *api.ProofKey {
	t.Helper()
	key, err := api.NewProofKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// withKey returns a client that proves the possession of a key.
func withKey(c *api.Client, key *api.ProofKey) *api.Client {
	c.ProofKey = key
	return c
}

// claimsOf returns the claims of a token.
func claimsOf(t testing.TB, token string) (claims struct {
	Confirm *api.Confirmation `json:"cnf"`
}) {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

// A token that is requested with a proof of possession is bound to the key, everywhere: in
// its answer, its claims, its introspection, its lease and its record.
func TestTokenIsBoundToTheKey(t *testing.T) {
	b := startBroker(t, nil, bindings)
	key := newProofKey(t)
	c := withKey(b.Bearer(Agent), key)
	for _, entitlement := range []string{"open-api", "key-api", "either-api"} {
		scope := strings.TrimSuffix(entitlement, "-api") + ":read"
		answer, err := c.Exchange(t.Context(), api.TokenRequest{Audience: entitlement, Scopes: []string{scope}})
		if err != nil {
			t.Fatalf("%s: %v", entitlement, err)
		}
		token := string(answer.AccessToken)
		b.Secret(token)
		if got := claimsOf(t, token).Confirm; answer.TokenType != "DPoP" || got == nil || *got != (api.Confirmation{KeyThumbprint: key.Thumbprint()}) {
			t.Errorf("%s: got a token of type %s that is bound to %v, want DPoP and %s", entitlement, answer.TokenType, got, key.Thumbprint())
		}
		for name, by := range map[string]*api.Client{"holder": c, "resource server": b.Bearer("spiffe://acme.test/tickets")} {
			in, err := by.Introspect(t.Context(), answer.AccessToken)
			if err != nil || in.TokenType != "DPoP" || in.Confirm == nil || in.Confirm.KeyThumbprint != key.Thumbprint() {
				t.Errorf("%s, introspected by its %s: got %+v, %v", entitlement, name, in, err)
			}
		}
		lease, err := c.Lease(t.Context(), answer.Lease)
		if err != nil || lease.Confirm == nil || lease.Confirm.KeyThumbprint != key.Thumbprint() {
			t.Errorf("%s: the lease is bound to %v (%v)", entitlement, lease.Confirm, err)
		}
		records := b.Records()
		last := records[len(records)-1]
		var want audit.Digest
		if _, err := base64.RawURLEncoding.Decode(want[:], []byte(key.Thumbprint())); err != nil {
			t.Fatal(err)
		}
		if last.Kind != audit.LeaseIssued || last.Lease.Key != want || last.Request.Key != want {
			t.Errorf("%s: the record of %s names the keys %s and %s", entitlement, last.Kind, last.Lease.Key, last.Request.Key)
		}
	}
}

// A caller that cannot be bound as demanded gets nothing, and learns what to do.
func TestBindingIsDemanded(t *testing.T) {
	b := startBroker(t, nil, bindings)
	ask := func(c *api.Client, entitlement string) error {
		_, _, err := c.AskAndCollect(t.Context(), api.Ask{Entitlement: entitlement, Scopes: []string{strings.TrimSuffix(entitlement, "-api") + ":read"}})
		return err
	}
	for _, test := range []struct {
		entitlement string
		client      *api.Client
		code        api.Code
		advice      string
	}{
		{"key-api", b.Bearer(Agent), api.BindingRequired, "send a DPoP proof"},
		{"key-api", b.Client(Agent), api.BindingRequired, "send a DPoP proof"},
		{"key-api", withKey(b.Client(Agent), newProofKey(t)), "", ""},
		{"either-api", b.Bearer(Agent), api.BindingRequired, "or connect with your X.509-SVID"},
		{"either-api", b.Client(Agent), "", ""},
		{"either-api", withKey(b.Bearer(Agent), newProofKey(t)), "", ""},
		{"open-api", b.Bearer(Agent), "", ""},
	} {
		err := ask(test.client, test.entitlement)
		var answer *api.Error
		if errors.As(err, &answer); test.code == "" && err != nil || test.code != "" && (answer == nil || answer.Code != test.code || !strings.Contains(answer.Detail, test.advice)) {
			t.Errorf("%s: got %v, want %q with %q", test.entitlement, err, test.code, test.advice)
		}
	}
}

// What was filed with a key is collected with that key only, on every endpoint, and a
// renewal keeps it.
func TestRequestIsBoundToItsKey(t *testing.T) {
	b := startBroker(t, nil, bindings)
	key := newProofKey(t)
	owner := withKey(b.Bearer(Agent), key)
	request, err := owner.Ask(t.Context(), api.Ask{Entitlement: "open-api", Scopes: []string{"open:read"}})
	if err != nil {
		t.Fatal(err)
	}
	if request.KeyThumbprint != key.Thumbprint() {
		t.Errorf("the request is bound to %q, want %q", request.KeyThumbprint, key.Thumbprint())
	}
	others := map[string]*api.Client{
		"no key": b.Bearer(Agent), "a certificate": b.Client(Agent), "another key": withKey(b.Bearer(Agent), newProofKey(t)),
	}
	refused := func(name, what string, err error) {
		t.Helper()
		var answer *api.Error
		if !errors.As(err, &answer) || answer.Code != api.BindingRequired {
			t.Errorf("%s with %s: got %v, want %s", what, name, err, api.BindingRequired)
		}
	}
	for name, c := range others {
		_, err := c.Collect(t.Context(), request.ID)
		refused(name, "collecting on /v1", err)
		_, err = c.Exchange(t.Context(), api.TokenRequest{RequestID: request.ID})
		refused(name, "collecting at the token endpoint", err)
	}
	credential, err := owner.Collect(t.Context(), request.ID)
	if err != nil || credential.Confirm == nil || credential.Confirm.KeyThumbprint != key.Thumbprint() {
		t.Fatalf("collecting with the key: %v, bound to %v", err, credential.Confirm)
	}
	for name, c := range others {
		_, err := c.Renew(t.Context(), credential.Lease)
		refused(name, "renewing", err)
	}
	renewed, err := owner.Renew(t.Context(), credential.Lease)
	if err != nil || renewed.Confirm == nil || renewed.Confirm.KeyThumbprint != key.Thumbprint() {
		t.Fatalf("renewing with the key: %v, bound to %v", err, renewed.Confirm)
	}
}

// A token that is bound although neither entitlement nor policy demand it stays bound when
// its lease is renewed.
func TestRenewalKeepsAVoluntaryBinding(t *testing.T) {
	b := startBroker(t, nil, bindings)
	request, err := b.Bearer(Agent).Ask(t.Context(), api.Ask{Entitlement: "open-api", Scopes: []string{"open:read"}})
	if err != nil {
		t.Fatal(err)
	}
	bound := withKey(b.Bearer(Agent), newProofKey(t))
	credential, err := bound.Collect(t.Context(), request.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Bearer(Agent).Renew(t.Context(), credential.Lease); err == nil {
		t.Error("the lease was renewed without its key")
	}
}

// rawCall sends one call with given DPoP headers, and returns its status, its header and the
// OAuth error or problem code.
func (b *Broker) rawCall(method, path, body, contentType string, proofs ...string) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.URL+path, strings.NewReader(body))
	b.must(err)
	req.Header.Set("Authorization", "Bearer "+b.JWT(Agent))
	req.Header.Set("Content-Type", contentType)
	for _, proof := range proofs {
		req.Header.Add("DPoP", proof)
	}
	resp, err := b.client(nil).HTTP.Do(req)
	b.must(err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	b.must(err)
	var failed struct {
		Error string `json:"error"`
		Code  string `json:"code"`
	}
	b.must(json.Unmarshal(text, &failed))
	if resp.StatusCode < 300 {
		return resp, ""
	}
	if failed.Error != "" {
		return resp, failed.Error
	}
	return resp, failed.Code
}

func (b *Broker) exchangeWith(proofs ...string) (*http.Response, string) {
	b.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "audience": {"open-api"}, "scope": {"open:read"}}
	return b.rawCall("POST", "/oauth2/token", form.Encode(), "application/x-www-form-urlencoded", proofs...)
}

// freshNonce returns a current nonce, as a client gets it: by a call without one.
func (b *Broker) freshNonce(key *api.ProofKey) string {
	b.t.Helper()
	proof, err := key.Proof("POST", b.URL+"/oauth2/token", "", "")
	b.must(err)
	resp, code := b.exchangeWith(proof)
	if nonce := resp.Header.Get("DPoP-Nonce"); nonce != "" && resp.StatusCode == 400 && code == "use_dpop_nonce" {
		return nonce
	}
	b.t.Fatalf("got %d %s with the header %v, want use_dpop_nonce and a nonce", resp.StatusCode, code, resp.Header)
	return ""
}

// Statuses, errors and headers are those of RFC 9449, sections 5, 7.1, 8 and 9.
func TestProofErrorsFollowTheRFC(t *testing.T) {
	b := startBroker(t, nil, bindings)
	key := newProofKey(t)
	nonce := b.freshNonce(key)
	good := func(path string) string {
		proof, err := key.Proof("POST", b.URL+path, nonce, "")
		b.must(err)
		return proof
	}
	body := `{"entitlement": "open-api", "scopes": ["open:read"]}`
	resp, code := b.rawCall("POST", "/v1/credentials", body, "application/json", "x")
	if resp.StatusCode != 401 || code != "invalid_dpop_proof" || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), `DPoP algs="ES256 `) || !strings.Contains(resp.Header.Get("WWW-Authenticate"), `error="invalid_dpop_proof"`) {
		t.Errorf("a malformed proof on /v1: got %d %s %v", resp.StatusCode, code, resp.Header)
	}
	without, err := key.Proof("POST", b.URL+"/v1/credentials", "", "")
	b.must(err)
	resp, code = b.rawCall("POST", "/v1/credentials", body, "application/json", without)
	if resp.StatusCode != 401 || code != "use_dpop_nonce" || resp.Header.Get("DPoP-Nonce") == "" || !strings.Contains(resp.Header.Get("WWW-Authenticate"), `error="use_dpop_nonce"`) {
		t.Errorf("no nonce on /v1: got %d %s %v", resp.StatusCode, code, resp.Header)
	}
	if resp, code = b.exchangeWith("x"); resp.StatusCode != 400 || code != "invalid_dpop_proof" || resp.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("a malformed proof at the token endpoint: got %d %s %v", resp.StatusCode, code, resp.Header)
	}
	if resp, code = b.exchangeWith(good("/oauth2/token"), good("/oauth2/token")); resp.StatusCode != 400 || code != "invalid_dpop_proof" {
		t.Errorf("two proofs: got %d %s", resp.StatusCode, code)
	}
	if resp, code = b.exchangeWith(strings.Repeat("x", 10<<10)); resp.StatusCode != 400 || code != "invalid_dpop_proof" {
		t.Errorf("a header of 10 KB: got %d %s", resp.StatusCode, code)
	}
	proof := good("/oauth2/token")
	if resp, code = b.exchangeWith(proof); code != "" || resp.Header.Get("DPoP-Nonce") == "" {
		t.Errorf("a good proof: got %d %s %v", resp.StatusCode, code, resp.Header)
	}
	if resp, code = b.exchangeWith(proof); resp.StatusCode != 400 || code != "invalid_dpop_proof" {
		t.Errorf("the same proof again: got %d %s", resp.StatusCode, code)
	}
	if resp, _ = b.exchangeWith(); resp.Header.Get("DPoP-Nonce") != "" {
		t.Errorf("a call without a proof gets a nonce: %v", resp.Header)
	}
}

// The holder of a token cannot introspect or revoke it with a proof of another key, or with
// a proof that names another token.
func TestIntrospectionChecksTheProof(t *testing.T) {
	b := startBroker(t, nil, bindings)
	key, other := newProofKey(t), newProofKey(t)
	answer, err := withKey(b.Bearer(Agent), key).Exchange(t.Context(), api.TokenRequest{Audience: "open-api", Scopes: []string{"open:read"}})
	if err != nil {
		t.Fatal(err)
	}
	token := string(answer.AccessToken)
	for _, path := range []string{"/oauth2/introspect", "/oauth2/revoke"} {
		for name, test := range map[string]struct {
			key   *api.ProofKey
			names string
			code  string
		}{
			"another key": {other, "", "invalid_dpop_proof"}, "another token": {key, "other", "invalid_dpop_proof"},
			"its own key": {key, "", ""}, "its own key and token": {key, token, ""},
		} {
			if path == "/oauth2/revoke" && test.code == "" {
				continue
			}
			proof, err := test.key.Proof("POST", b.URL+path, b.freshNonce(test.key), test.names)
			b.must(err)
			resp, code := b.rawCall("POST", path, url.Values{"token": {token}}.Encode(), "application/x-www-form-urlencoded", proof)
			if code != test.code {
				t.Errorf("%s with %s: got %d %s, want %q", path, name, resp.StatusCode, code, test.code)
			}
		}
	}
}

// A proof that issued a token issues no other one after a restart, and a nonce of before is
// still good.
func TestProofsOutliveARestart(t *testing.T) {
	b := startBroker(t, nil, bindings)
	key := newProofKey(t)
	nonce := b.freshNonce(key)
	used, err := key.Proof("POST", b.URL+"/oauth2/token", nonce, "")
	b.must(err)
	unused, err := key.Proof("POST", b.URL+"/oauth2/token", nonce, "")
	b.must(err)
	if resp, code := b.exchangeWith(used); code != "" {
		t.Fatalf("got %d %s", resp.StatusCode, code)
	}
	b.restart()
	if resp, code := b.exchangeWith(used); resp.StatusCode != 400 || code != "invalid_dpop_proof" {
		t.Errorf("a used proof: got %d %s", resp.StatusCode, code)
	}
	if resp, code := b.exchangeWith(unused); code != "" {
		t.Errorf("an unused proof: got %d %s", resp.StatusCode, code)
	}
}

// A token for the MCP endpoint that is bound to a key works only with proofs of the key, and
// never as a bearer token.
func TestMCPChecksTheKey(t *testing.T) {
	b := startBroker(t, nil, bindings)
	key, other, client := newProofKey(t), newProofKey(t), b.Anonymous().HTTP
	exchange := func(c *api.Client) string {
		answer, err := c.Exchange(t.Context(), api.TokenRequest{SubjectToken: b.JWT(Agent), Resource: b.URL + "/mcp", Scopes: []string{"access:list"}})
		b.must(err)
		b.Secret(string(answer.AccessToken))
		return string(answer.AccessToken)
	}
	token, unbound := exchange(withKey(b.Anonymous(), key)), exchange(b.Anonymous())
	call := func(scheme, token, proof string) mcpAnswer {
		m := listAccess.with("Authorization", scheme+" "+token)
		if proof != "" {
			m = m.with("DPoP", proof)
		}
		return b.post(client, m)
	}
	proof := func(key *api.ProofKey, nonce, token string) string {
		p, err := key.Proof("POST", b.URL+"/mcp", nonce, token)
		b.must(err)
		return p
	}
	first := call("DPoP", token, proof(key, "", token))
	nonce := first.header.Get("DPoP-Nonce")
	if first.status != 401 || first.code != api.UseDPoPNonce || nonce == "" || !strings.Contains(strings.Join(first.header.Values("WWW-Authenticate"), "\n"), `error="use_dpop_nonce"`) {
		t.Fatalf("without a nonce: got %d %s %v", first.status, first.code, first.header)
	}
	good := proof(key, nonce, token)
	if got := call("DPoP", token, good); got.status != 200 || got.header.Get("DPoP-Nonce") == "" {
		t.Errorf("with a proof: got %d %s", got.status, got.text)
	}
	for name, got := range map[string]mcpAnswer{
		"the same proof":        call("DPoP", token, good),
		"as bearer":             call("Bearer", token, ""),
		"as bearer, with proof": call("Bearer", token, proof(key, nonce, token)),
		"no proof":              call("DPoP", token, ""),
		"another key":           call("DPoP", token, proof(other, nonce, token)),
		"another token":         call("DPoP", token, proof(key, nonce, unbound)),
		"no ath":                call("DPoP", token, proof(key, nonce, "")),
		"an unbound token":      call("DPoP", unbound, proof(key, nonce, unbound)),
	} {
		if got.status != 401 || got.code != api.InvalidDPoPProof && got.code != api.Unauthenticated {
			t.Errorf("%s: got %d %s %s", name, got.status, got.code, got.text)
		}
	}
}
