package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/auth/extauth"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"golang.org/x/oauth2"

	"accessbroker.internal/e2e/servers"
)

const peoplePolicy = `
@id("people")
permit (principal in Group::"support", action == Action::"request", resource == Entitlement::"tickets-api")
when { context.scopes == ["tickets:read"] };
`

// An idp is an independent OpenID provider, npm's oidc-provider, whose people let agents act
// for them.
type idp struct {
	t              *testing.T
	issuer, reply  string // reply is the redirect URI of the agent's client
	client, secret string
	dir            string // with node_modules
}

func startIDP(t *testing.T) *idp {
	t.Helper()
	modules, err := servers.Modules("delegation")
	if err != nil {
		t.Fatal(err)
	}
	p := &idp{t: t, client: "agent-app", secret: "s3cret-of-agent-app", reply: "http://127.0.0.1:1/callback", dir: t.TempDir()}
	for _, name := range []string{"provider.mjs", "client.mjs"} {
		text, err := os.ReadFile(filepath.Join("clients", "delegation", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(p.dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(modules, filepath.Join(p.dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), installed(t, "node"), filepath.Join(p.dir, "provider.mjs"), fmt.Sprint(freePort(t)), p.reply)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	p.issuer = strings.TrimSpace(line)
	return p
}

// logIn logs a person in at the provider, as a browser would, and returns the code. more are
// further parameters of the authorization request.
func (p *idp) logIn(person string, more url.Values) string {
	p.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	code := ""
	browser := &http.Client{Jar: jar, Timeout: 20 * time.Second, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), p.reply) {
			code = r.URL.Query().Get("code")
			return http.ErrUseLastResponse
		}
		return nil
	}}
	query := url.Values{"client_id": {p.client}, "response_type": {"code"}, "scope": {"openid"}, "redirect_uri": {p.reply}, "nonce": {"n"}}
	for name, values := range more {
		query[name] = values
	}
	resp, err := browser.Get(p.issuer + "/auth?" + query.Encode())
	for _, form := range []url.Values{{"prompt": {"login"}, "login": {person}, "password": {"x"}}, {"prompt": {"consent"}}} {
		if err != nil || code != "" {
			break
		}
		_ = resp.Body.Close()
		resp, err = browser.PostForm(resp.Request.URL.String(), form)
	}
	if err != nil || code == "" {
		p.t.Fatalf("logging in as %s: %v", person, err)
	}
	_ = resp.Body.Close()
	return code
}

// tokens posts a form to the token endpoint.
func (p *idp) tokens(form url.Values) map[string]any {
	p.t.Helper()
	form.Set("client_id", p.client)
	form.Set("client_secret", p.secret)
	resp, err := http.PostForm(p.issuer+"/token", form)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var answer map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("the provider's token endpoint: got %d %v, %v", resp.StatusCode, answer, err)
	}
	return answer
}

// idToken returns an ID token of a person for the agent's client.
func (p *idp) idToken(person string) string {
	text, _ := p.tokens(url.Values{"grant_type": {"authorization_code"}, "code": {p.logIn(person, nil)}, "redirect_uri": {p.reply}})["id_token"].(string)
	return text
}

// accessToken returns an access token of a person for the audience that is reserved.
func (p *idp) accessToken(person string) string {
	resource := url.Values{"resource": {"urn:acme:broker-agents"}, "scope": {"openid tickets:read"}}
	code := p.logIn(person, resource)
	text, _ := p.tokens(url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {p.reply}, "resource": resource["resource"]})["access_token"].(string)
	return text
}

// idJAG exchanges an ID token for an ID-JAG.
func (p *idp) idJAG(idToken, broker string) string {
	text, _ := p.tokens(url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "requested_token_type": {oauthex.TokenTypeIDJAG},
		"subject_token": {idToken}, "subject_token_type": {oauthex.TokenTypeIDToken}, "audience": {broker}, "resource": {ticketsAudience}, "scope": {"tickets:read"},
	})["access_token"].(string)
	return text
}

// TestActingForPeople lets independent clients act on behalf of people of an independent
// provider: the enterprise handler of the MCP SDK for Go, openid-client, and the CLI.
func TestActingForPeople(t *testing.T) {
	t.Parallel() // it mostly waits
	p := startIDP(t)
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", ownBinary(t))
	w := newBroker(t, s)
	w.write(t, "client.secret", "s3cret-of-the-broker")
	w.write(t, "policies/groups.yaml", "support: {claims: [{provider: login, group: support}]}\n")
	w.configure(t, []string{s.domain}, agentsPolicy+peoplePolicy)
	file, err := os.ReadFile(filepath.Join(w.dir, "broker.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	people := fmt.Sprintf("\n  people:\n    login: {issuer: %q, client_id: broker, client_secret_file: client.secret, groups_claim: groups, delegation_audiences: [broker-agents], "+
		"delegation: {id_jag: true, clients: {mcp-client: [\"spiffe://acme.test/agent/triage\"], agent-app: [\"spiffe://acme.test/agent/triage\"]}}}\nstore:", p.issuer)
	w.write(t, "broker.yaml", strings.Replace(string(file), "\nstore:", people, 1))
	w.start(t)
	t.Run("go-sdk enterprise handler", func(t *testing.T) { testEnterpriseHandler(t, w, p) })
	t.Run("openid-client", func(t *testing.T) { testDelegationClient(t, w, p) })
	t.Run("command line", func(t *testing.T) { testOnBehalfOf(t, w, p) })
}

// enterprise authorizes with the MCP SDK's handler, and returns its token.
func enterprise(t *testing.T, w *world, p *idp, person string) (*oauth2.Token, error) {
	t.Helper()
	src := source(t, w.spire)
	config := tlsconfig.MTLSClientConfig(src, src, tlsconfig.AuthorizeID(brokerID))
	handler, err := extauth.NewEnterpriseHandler(&extauth.EnterpriseHandlerConfig{
		IdPIssuerURL:     p.issuer,
		IdPCredentials:   &oauthex.ClientCredentials{ClientID: p.client, ClientSecretAuth: &oauthex.ClientSecretAuth{ClientSecret: p.secret}},
		MCPAuthServerURL: w.url, MCPResourceURI: ticketsAudience, MCPScopes: []string{"tickets:read"},
		MCPCredentials: &oauthex.ClientCredentials{ClientID: "mcp-client"},
		IDTokenFetcher: func(_ context.Context) (*oauth2.Token, error) {
			return new(oauth2.Token).WithExtra(map[string]any{"id_token": p.idToken(person)}), nil
		},
		HTTPClient: client(t, config, true),
	})
	if err != nil {
		t.Fatal(err)
	}
	resp := &http.Response{StatusCode: http.StatusUnauthorized, Body: io.NopCloser(strings.NewReader(""))}
	if err := handler.Authorize(t.Context(), httptest.NewRequest(http.MethodPost, ticketsAudience, nil), resp); err != nil {
		return nil, err
	}
	tokens, err := handler.TokenSource(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tokens.Token()
}

func testEnterpriseHandler(t *testing.T, w *world, p *idp) {
	token, err := enterprise(t, w, p, "ana")
	if err != nil {
		t.Fatal(err)
	}
	claims := w.claims(t, w.anonymousClient(t, source(t, w.spire)).HTTP, token.AccessToken, ticketsAudience)
	act, _ := claims["act"].(map[string]any)
	if claims["sub"] != "login/ana" || claims["client_id"] != "spiffe://acme.test/agent/triage" || act["sub"] != "spiffe://acme.test/agent/triage" || claims["scope"] != "tickets:read" {
		t.Errorf("got claims %v", claims)
	}
	// Eve is in no group: policy permits the agent, but not her.
	var refused *oauth2.RetrieveError
	if _, err := enterprise(t, w, p, "eve"); !errors.As(err, &refused) || refused.ErrorCode != "invalid_target" {
		t.Errorf("on behalf of eve: got %v", err)
	}
}

func testDelegationClient(t *testing.T, w *world, p *idp) {
	id := p.idToken("ana")
	tokens, err := json.Marshal(map[string]string{"idToken": id, "jag": p.idJAG(id, w.url), "second": p.idJAG(id, w.url), "access": p.accessToken("ana")})
	file := filepath.Join(t.TempDir(), "tokens.json")
	if err == nil {
		err = os.WriteFile(file, tokens, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		Sub, Actor, Scope, Audience string
		Error, Description          string
		Grant                       bool
		Profile                     string
	}
	var got map[string]answer
	runClient(t, w, &got, installed(t, "node"), filepath.Join(p.dir, "client.mjs"), file)
	ana := answer{Sub: "login/ana", Actor: "spiffe://acme.test/agent/triage", Scope: "tickets:read", Audience: ticketsAudience}
	for name, want := range map[string]answer{
		"metadata": {Grant: true, Profile: "urn:ietf:params:oauth:grant-profile:id-jag"},
		"id_jag":   ana, "exchanged": ana, "access_token": ana,
	} {
		if !reflect.DeepEqual(got[name], want) {
			t.Errorf("%s: got %+v, want %+v", name, got[name], want)
		}
	}
	for name, want := range map[string]string{"replayed": "invalid_grant", "id_token": "invalid_request", "id_token_as_grant": "invalid_grant"} {
		if got[name].Error != want || len(got[name].Description) < 10 {
			t.Errorf("%s: got %+v, want the error %s", name, got[name], want)
		}
	}
	if len(got) != 7 {
		t.Errorf("got %d results: %+v", len(got), got)
	}
}

// testOnBehalfOf requests with a token in a file.
func testOnBehalfOf(t *testing.T, w *world, p *idp) {
	triage := copyBinary(t, w.bin, "triage")
	w.spire.register(t, "/agent/triage", triage)
	path := filepath.Join(t.TempDir(), "ana.jwt")
	if err := os.WriteFile(path, []byte(p.accessToken("ana")), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a credential on Ana's behalf", time.Minute, func() error {
		out, errs, code := w.cli(triage, "exec", "tickets-api", "--scope", "tickets:read", "--why", "x", "--on-behalf-of", path, "--", "printenv", "BROKER_LEASE")
		if code != 0 || !strings.HasPrefix(out, "lse_") {
			return errors.New(errs)
		}
		return nil
	})
	if log := w.records(t, "-o", "json"); !strings.Contains(log, "login/ana") {
		t.Errorf("the log does not name Ana:\n%s", log)
	}
}
