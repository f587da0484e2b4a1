package brokertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
)

// A tokenIssuer signs tokens of workloads, as a CI service or a cluster does. Its keys are in
// a file.
type tokenIssuer struct {
	t        testing.TB
	url      string
	kid      string
	key      *ecdsa.PrivateKey
	keysFile string
}

func newTokenIssuer(t testing.TB, url string) *tokenIssuer {
	t.Helper()
	i := &tokenIssuer{t: t, url: url, keysFile: filepath.Join(t.TempDir(), "jwks.json")}
	i.rotate("first")
	return i
}

// rotate replaces the key, and withdraws the one before.
func (i *tokenIssuer) rotate(kid string) {
	i.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.key, i.kid = key, kid
	point, err := key.PublicKey.Bytes()
	if err != nil {
		i.t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	document := fmt.Sprintf(`{"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": %q, "x": %q, "y": %q}]}`, kid, encode(point[1:33]), encode(point[33:]))
	if err := os.WriteFile(i.keysFile, []byte(document), 0o600); err != nil {
		i.t.Fatal(err)
	}
}

// claims returns the usual claims of the issuer's tokens, with others; a nil one is left out.
func (i *tokenIssuer) claims(more map[string]any) jwt.MapClaims {
	now := time.Now().Truncate(time.Second)
	all := jwt.MapClaims{"iss": i.url, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text()}
	maps.Copy(all, more)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	return all
}

func (i *tokenIssuer) sign(claims jwt.MapClaims) string {
	i.t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["kid"] = i.kid
	text, err := token.SignedString(i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	return text
}

// gitHub are the claims of a token of GitHub Actions, for a push to main of acme/shop.
func gitHub(audience string, more map[string]any) map[string]any {
	all := map[string]any{
		"aud": audience, "sub": "repo:acme/shop:ref:refs/heads/main", "repository": "acme/shop", "repository_id": "74", "repository_owner": "acme", "repository_owner_id": "65",
		"repository_visibility": "private", "ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true", "sha": "example-sha", "event_name": "push", "workflow": "deploy",
		"job_workflow_ref": "acme/shop/.github/workflows/deploy.yml@refs/heads/main", "run_id": "30433642", "run_number": "1", "run_attempt": "1", "actor": "ana", "actor_id": "12",
		"head_ref": "", "base_ref": "", "runner_environment": "github-hosted", "enterprise": "acme-enterprise", "enterprise_id": "122",
	}
	maps.Copy(all, more)
	return all
}

const shopDeploy = "spiffe://ci.acme.test/github/65/74"

// workloadFiles are the files of a broker that accepts tokens of issuers.
func workloadFiles(gitHub, cluster *tokenIssuer) files {
	return files{
		attest: fmt.Sprintf(`
  oidc_workloads:
    github:
      issuer: %s
      trust_domain: ci.acme.test
      jwks_file: %s
      rules:
        - claims: {repository_owner_id: "65", repository_id: "74", ref: refs/heads/main, event_name: [push, workflow_dispatch]}
          spiffe_id: spiffe://ci.acme.test/github/${repository_owner_id}/${repository_id}
    cluster:
      issuer: %s
      trust_domain: k8s.acme.test
      one_time: false
      jwks_file: %s
      rules:
        - claims:
            kubernetes.io: {namespace: payments, serviceaccount: {name: api}}
          spiffe_id: spiffe://k8s.acme.test/ns/${/kubernetes.io/namespace}/sa/${/kubernetes.io/serviceaccount/name}
`, gitHub.url, gitHub.keysFile, cluster.url, cluster.keysFile),
		policies: `
@id("ci") permit (principal in TrustDomain::"ci.acme.test", action == Action::"request", resource) when { principal.attested == "oidc" };
@id("cluster") permit (principal in Path::"spiffe://k8s.acme.test/ns/payments", action == Action::"request", resource == Entitlement::"tickets-api");
@id("svids-only") forbid (principal, action == Action::"request", resource == Entitlement::"listed-api") unless { principal has attested && principal.attested == "spiffe" };
`,
	}
}

type workloadWorld struct {
	*Broker
	gitHub, cluster *tokenIssuer
}

func newWorkloadWorld(t testing.TB) *workloadWorld {
	t.Helper()
	w := &workloadWorld{gitHub: newTokenIssuer(t, "https://token.actions.githubusercontent.com"), cluster: newTokenIssuer(t, "https://kubernetes.default.svc.cluster.local")}
	w.Broker = startBroker(t, nil, workloadFiles(w.gitHub, w.cluster))
	return w
}

// push returns a token of GitHub Actions, with other claims than those of a push to main.
func (w *workloadWorld) push(more map[string]any) string {
	token := w.gitHub.sign(w.gitHub.claims(gitHub(w.URL, more)))
	w.Secret(token)
	return token
}

// with returns a client that sends a token.
func (w *workloadWorld) with(token string) *api.Client {
	c := w.Anonymous()
	c.Token = func(context.Context) (string, error) { return token, nil }
	return c
}

func TestWorkloadTokenGetsCredential(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	token := w.push(nil)
	who, err := w.with(token).WhoAmI(t.Context())
	if err != nil || who.ID != shopDeploy {
		t.Fatalf("got %+v, %v, want the identity %s", who, err, shopDeploy)
	}
	got, err := w.Anonymous().Exchange(t.Context(), api.TokenRequest{SubjectToken: token, Audience: "tickets-api", Scopes: []string{"tickets:read"}})
	if err != nil {
		t.Fatal(err)
	}
	w.Secret(string(got.AccessToken))
	if most := int64(5 * 60); got.ExpiresIn > most {
		t.Errorf("got a token for %d s, want at most the %d s of the token that it was exchanged for", got.ExpiresIn, most)
	}
	records := w.Records()
	last := records[len(records)-1]
	if last.Kind != audit.LeaseIssued || last.Caller.ID != shopDeploy || last.Caller.Method != "oidc-token" {
		t.Errorf("got the record %s of %+v", last.Kind, last.Caller)
	}
}

func TestWorkloadTokenIsUsedOnce(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	token := w.push(nil)
	ask := api.TokenRequest{SubjectToken: token, Audience: "tickets-api", Scopes: []string{"tickets:read"}}
	if _, err := w.Anonymous().Exchange(t.Context(), ask); err != nil {
		t.Fatal(err)
	}
	status, body := w.Form(url.Values{"grant_type": {api.GrantTokenExchange}, "subject_token": {token}, "subject_token_type": {api.TokenTypeJWT}, "audience": {"tickets-api"}, "scope": {"tickets:read"}})
	var failed api.OAuthError
	if err := json.Unmarshal(body, &failed); err != nil || status != 400 || failed.Code != api.TokenSpent {
		t.Errorf("got %d %s, want token_spent", status, body)
	}
	_, _, err := w.with(token).AskAndCollect(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}})
	if !errors.Is(err, api.TokenSpent) {
		t.Errorf("got %v over /v1, want token_spent", err)
	}
	if who, err := w.with(token).WhoAmI(t.Context()); err != nil || who.ID != shopDeploy {
		t.Errorf("got %+v, %v: a token still proves the identity", who, err)
	}
	pod := w.cluster.sign(w.cluster.claims(map[string]any{
		"aud": []string{w.URL}, "sub": "system:serviceaccount:payments:api",
		"kubernetes.io": map[string]any{"namespace": "payments", "serviceaccount": map[string]any{"name": "api", "uid": "8b1c"}, "pod": map[string]any{"name": "api-0", "uid": "9"}},
	}))
	for n := range 2 {
		got, err := w.Anonymous().Exchange(t.Context(), api.TokenRequest{SubjectToken: pod, Audience: "tickets-api", Scopes: []string{"tickets:read"}})
		if err != nil {
			t.Fatalf("use %d of a reusable token: %v", n+1, err)
		}
		w.Secret(string(got.AccessToken))
	}
}

// A policy can demand an SVID, also where a permit for everything applies.
func TestPolicyDemandsSVID(t *testing.T) {
	t.Parallel()
	w := newWorkloadWorld(t)
	ask := func(c *api.Client, entitlement, scope string) error {
		issued, _, err := c.AskAndCollect(t.Context(), api.Ask{Entitlement: entitlement, Scopes: []string{scope}})
		if err == nil {
			w.Secret(issued.Secret["token"])
		}
		return err
	}
	if err := ask(w.with(w.push(nil)), "tickets-api", "tickets:read"); err != nil {
		t.Errorf("without a demand: %v", err)
	}
	if err := ask(w.with(w.push(nil)), "listed-api", "listed:read"); !errors.Is(err, api.Denied) {
		t.Errorf("got %v with an OIDC token, want a denial", err)
	}
	if err := ask(w.Bearer(Agent), "listed-api", "listed:read"); err != nil {
		t.Errorf("with an SVID: %v", err)
	}
}
