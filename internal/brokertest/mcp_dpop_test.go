package brokertest

import (
	"net/http"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// A token that is bound to a key needs a proof of that key for each call, which names the
// token, the method and the endpoint.
func TestMCPProofsOfPossession(t *testing.T) {
	t.Parallel()
	b := New(t)
	key := newProofKey(t)
	answer, err := withKey(b.Bearer(Agent), key).Exchange(t.Context(), api.TokenRequest{Resource: b.URL + "/mcp", Scopes: []string{"access:list"}})
	b.must(err)
	token, c := string(answer.AccessToken), b.Anonymous().HTTP
	b.Secret(token)
	unbound := b.mcpToken(Agent, "access:list")
	call := func(scheme, token, proof string) mcpAnswer {
		m := listAccess.with("Authorization", scheme+" "+token)
		if proof != "" {
			m = m.with("DPoP", proof)
		}
		return b.post(c, m)
	}
	prove := func(key *api.ProofKey, method, url, token, nonce string) string {
		t.Helper()
		proof, err := key.Proof(method, url, nonce, token)
		b.must(err)
		return proof
	}
	endpoint := b.URL + "/mcp"
	first := call("DPoP", token, prove(key, http.MethodPost, endpoint, token, ""))
	nonce := first.header.Get("DPoP-Nonce")
	if first.status != http.StatusUnauthorized || nonce == "" || !strings.Contains(strings.Join(first.header.Values("WWW-Authenticate"), "\n"), `DPoP realm="access broker", algs="ES256`) ||
		!strings.Contains(strings.Join(first.header.Values("WWW-Authenticate"), "\n"), `error="use_dpop_nonce"`) {
		t.Fatalf("without a nonce: got %d %v %s", first.status, first.header, first.text)
	}
	good := prove(key, http.MethodPost, endpoint, token, nonce)
	// A call without a proven identity does not spend the proof.
	if got := call("DPoP", "x.y.z", good); got.status != http.StatusUnauthorized {
		t.Errorf("without the token: got %d %s", got.status, got.text)
	}
	if got := call("DPoP", token, good); got.status != http.StatusOK || !strings.Contains(got.text, "tickets-api") {
		t.Errorf("got %d %s", got.status, got.text)
	}
	for name, got := range map[string]mcpAnswer{
		"replayed":         call("DPoP", token, good),
		"as Bearer":        call("Bearer", token, ""),
		"Bearer and proof": call("Bearer", token, prove(key, http.MethodPost, endpoint, token, nonce)),
		"no proof":         call("DPoP", token, ""),
		"another key":      call("DPoP", token, prove(newProofKey(t), http.MethodPost, endpoint, token, nonce)),
		"another token":    call("DPoP", token, prove(key, http.MethodPost, endpoint, unbound, nonce)),
		"no token":         call("DPoP", token, prove(key, http.MethodPost, endpoint, "", nonce)),
		"another method":   call("DPoP", token, prove(key, http.MethodGet, endpoint, token, nonce)),
		"another endpoint": call("DPoP", token, prove(key, http.MethodPost, b.URL+"/v1/requests", token, nonce)),
		"unbound as DPoP":  call("DPoP", unbound, prove(key, http.MethodPost, endpoint, unbound, nonce)),
	} {
		if got.status != http.StatusUnauthorized || got.result != nil {
			t.Errorf("%s: got %d %s", name, got.status, got.text)
		}
	}
}
