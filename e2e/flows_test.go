package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"accessbroker.internal/api"
)

// reading is the request of most flows. The client does not retry, so every call
// that the broker drops fails a test.
var reading = api.TokenRequest{Audience: "tickets-api", Scopes: []string{"tickets:read"}}

// withSubject returns the same request with a JWT-SVID as the subject_token.
func withSubject(svid string) api.TokenRequest {
	r := reading
	r.SubjectToken = svid
	return r
}

// TestSPIRE runs the flows of one trust domain in sequence. It stops the agent and
// rotates keys, so it has a SPIRE of its own.
func TestSPIRE(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startSPIRE(t, "acme.test")
	s.register(t, "/agent/triage", ownBinary(t))
	w := startBroker(t, s)
	src := source(t, s)
	t.Run("mTLS", func(t *testing.T) { testMTLS(t, w, src) })
	t.Run("JWT-SVID", func(t *testing.T) { testJWTSVID(t, w, src) })
	t.Run("RFC 8693 by plain HTTP", func(t *testing.T) { testPlainExchange(t, w, src) })
	t.Run("OAuth client library", func(t *testing.T) { testOAuthLibrary(t, w, src) })
	t.Run("JavaScript OAuth clients", func(t *testing.T) { testJavaScriptClients(t, w) })
	t.Run("Authlib", func(t *testing.T) { testAuthlib(t, w) })
	t.Run("introspection", func(t *testing.T) { testIntrospection(t, w, src) })
	t.Run("bound token", func(t *testing.T) { testBound(t, w, src) })
	t.Run("resource servers", func(t *testing.T) { testResourceServers(t, w, src) })
	t.Run("command line", func(t *testing.T) { testCommandLine(t, w) })
	t.Run("not entitled", func(t *testing.T) { testNotEntitled(t, w, src) })
	t.Run("agent down and back", func(t *testing.T) { testAgentDown(t, w, src) })
	t.Run("broker killed", func(t *testing.T) { testKilled(t, w, src) })
}

func testMTLS(t *testing.T, w *world, src *workloadapi.X509Source) {
	c := w.mtlsClient(t, src)
	who, err := c.WhoAmI(t.Context())
	if err != nil || who.ID != "spiffe://acme.test/agent/triage" || who.Kind != "agent" || who.Proof.Method != "x509-svid" {
		t.Fatalf("whoami: %+v, %v", who, err)
	}
	token, err := c.Exchange(t.Context(), reading)
	if err != nil {
		t.Fatal(err)
	}
	claims := w.claims(t, c.HTTP, string(token.AccessToken), ticketsAudience)
	if claims["sub"] != who.ID || claims["client_id"] != who.ID || claims["scope"] != "tickets:read" || claims["jti"] != token.Lease || claims["request"] != token.RequestID {
		t.Errorf("the claims are %v", claims)
	}
}

func testJWTSVID(t *testing.T, w *world, src *workloadapi.X509Source) {
	c := w.anonymousClient(t, src)
	svid := jwtSVID(t, w.spire, w.url).Marshal()
	more := withSubject(svid)
	more.Scopes = []string{"tickets:read", "tickets:comment"}
	token, err := c.Exchange(t.Context(), more)
	if err != nil {
		t.Fatal(err)
	}
	if claims := w.claims(t, c.HTTP, string(token.AccessToken), ticketsAudience); claims["scope"] != "tickets:comment tickets:read" {
		t.Errorf("the claims are %v", claims)
	}
	who, err := w.bearerClient(t, src, svid).WhoAmI(t.Context())
	if err != nil || who.ID != "spiffe://acme.test/agent/triage" || who.Proof.Method != "jwt-svid" {
		t.Errorf("whoami by a bearer: %+v, %v", who, err)
	}
	for name, bad := range map[string]string{
		"for another audience": jwtSVID(t, w.spire, "https://elsewhere.test").Marshal(),
		"with its end cut off": svid[:len(svid)-8],
	} {
		_, err := c.Exchange(t.Context(), withSubject(bad))
		if refused := wantOAuthError(err, "invalid_request", api.Unauthenticated); refused != nil || strings.Contains(err.Error(), bad) {
			t.Errorf("a JWT-SVID %s as subject_token: %v", name, err)
		}
		_, err = w.bearerClient(t, src, bad).WhoAmI(t.Context())
		if err := wantRefusal(err, api.Unauthenticated, http.StatusUnauthorized); err != nil {
			t.Errorf("a JWT-SVID %s as bearer: %v", name, err)
		}
	}
	both := w.mtlsClient(t, src)
	both.Token = func(context.Context) (string, error) { return svid, nil }
	who, err = both.WhoAmI(t.Context())
	if err != nil || who.ID != "spiffe://acme.test/agent/triage" || who.Proof.Method != "x509-svid" {
		t.Errorf("two proofs of one identity: %+v, %v", who, err)
	}
}

// testPlainExchange sends the parameters of RFC 8693 with net/http alone, as a
// foreign client would.
func testPlainExchange(t *testing.T, w *world, src *workloadapi.X509Source) {
	form := url.Values{
		"grant_type":         {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":      {jwtSVID(t, w.spire, w.url).Marshal()},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:jwt"},
		"audience":           {"tickets-api"},
		"scope":              {"tickets:read"},
	}
	post := func() (int, http.Header, map[string]any) {
		resp, err := w.anonymousClient(t, src).HTTP.PostForm(w.url+"/oauth2/token", form)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		var answer map[string]any
		if err := errors.Join(err, json.Unmarshal(body, &answer)); err != nil {
			t.Fatalf("%s: %v: %s", resp.Status, err, body)
		}
		return resp.StatusCode, resp.Header, answer
	}
	status, header, answer := post()
	if status != http.StatusOK || answer["token_type"] != "Bearer" || answer["issued_token_type"] != "urn:ietf:params:oauth:token-type:access_token" ||
		header.Get("Cache-Control") != "no-store" || header.Get("Content-Type") != "application/json" {
		delete(answer, "access_token")
		t.Errorf("an exchange: %d %v %v", status, header, answer)
	}
	for name, bad := range map[string]struct{ key, value, want string }{
		"no grant type":          {"grant_type", "", "invalid_request"},
		"another grant type":     {"grant_type", "password", "unsupported_grant_type"},
		"another kind of token":  {"subject_token_type", "urn:ietf:params:oauth:token-type:saml2", "invalid_request"},
		"a malformed token":      {"subject_token", "eyJ.eyJ.x", "invalid_request"},
		"an unknown entitlement": {"audience", "nothing-api", "invalid_target"},
		"an unknown scope":       {"scope", "tickets:burn", "invalid_scope"},
	} {
		was := form.Get(bad.key)
		form.Set(bad.key, bad.value)
		status, _, answer := post()
		form.Set(bad.key, was)
		if status != http.StatusBadRequest || answer["error"] != bad.want || answer["error_description"] == nil || answer["access_token"] != nil {
			t.Errorf("%s: %d %v, want 400 %s", name, status, answer, bad.want)
		}
	}
}

// testOAuthLibrary gets a token over mTLS with golang.org/x/oauth2.
func testOAuthLibrary(t *testing.T, w *world, src *workloadapi.X509Source) {
	config := clientcredentials.Config{
		ClientID: "spiffe://acme.test/agent/triage", TokenURL: w.url + "/oauth2/token",
		Scopes: reading.Scopes, EndpointParams: url.Values{"audience": {"tickets-api"}}, AuthStyle: oauth2.AuthStyleInParams,
	}
	c := w.mtlsClient(t, src).HTTP
	token, err := config.Token(context.WithValue(t.Context(), oauth2.HTTPClient, c))
	if err != nil || token.TokenType != "Bearer" || !token.Valid() {
		t.Fatalf("%+v, %v", token, err)
	}
	w.claims(t, c, token.AccessToken, ticketsAudience)
}

// testIntrospection introspects a token as the resource server, as the holder and
// as another workload (RFC 7662), before and after its revocation (RFC 7009).
func testIntrospection(t *testing.T, w *world, src *workloadapi.X509Source) {
	holder := w.mtlsClient(t, src)
	token, err := holder.Exchange(t.Context(), reading)
	if err != nil {
		t.Fatal(err)
	}
	resource := w.bearerClient(t, src, w.spire.workload(t, "/tickets", w.url).Token)
	other := w.bearerClient(t, src, w.spire.workload(t, "/somebody/else", w.url).Token)
	active := func(c *api.Client) bool {
		t.Helper()
		answer, err := c.Introspect(t.Context(), token.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		return answer.Active
	}
	if !active(holder) || !active(resource) || active(other) {
		t.Errorf("active for the holder %t, the resource server %t, another workload %t; want true, true, false", active(holder), active(resource), active(other))
	}
	if err := other.RevokeToken(t.Context(), token.AccessToken); err != nil || !active(holder) {
		t.Errorf("revocation by another workload: %v, and active is %t", err, active(holder))
	}
	if err := holder.RevokeToken(t.Context(), token.AccessToken); err != nil || active(holder) || active(resource) {
		t.Errorf("revocation by the holder: %v, and active is %t", err, active(resource))
	}
}

func testBound(t *testing.T, w *world, src *workloadapi.X509Source) {
	c := w.mtlsClient(t, src)
	bound := api.TokenRequest{Audience: "bound-api", Scopes: []string{"bound:read"}}
	token, err := c.Exchange(t.Context(), bound)
	if err != nil {
		t.Fatal(err)
	}
	certificate := leaf(t, src).Certificates[0]
	thumbprint := sha256.Sum256(certificate.Raw)
	claims := w.claims(t, c.HTTP, string(token.AccessToken), "https://bound.acme.test")
	if want := map[string]any{"spiffe_id": certificate.URIs[0].String(), "x5t#S256": base64.RawURLEncoding.EncodeToString(thumbprint[:])}; fmt.Sprint(claims["cnf"]) != fmt.Sprint(want) {
		t.Errorf("cnf is %v, want %v", claims["cnf"], want)
	}
	bound.SubjectToken = jwtSVID(t, w.spire, w.url).Marshal()
	_, err = w.anonymousClient(t, src).Exchange(t.Context(), bound)
	if err := wantOAuthError(err, "invalid_request", api.BindingRequiresMTLS); err != nil {
		t.Errorf("a bound token without a certificate: %v", err)
	}
}

func testCommandLine(t *testing.T, w *world) {
	bin := copyBinary(t, w.bin, "agent")
	w.spire.register(t, "/agent/cli", bin)
	eventually(t, "the command line's identity", time.Minute, func() error {
		out, errs, code := w.cli(bin, "whoami")
		if code != 0 || !strings.Contains(out, "spiffe://acme.test/agent/cli") {
			return fmt.Errorf("%d: %s%s", code, out, errs)
		}
		return nil
	})
	out, errs, code := w.cli(bin, "request", "tickets-api", "--scope", "tickets:read", "--why", "to see", "-o", "json")
	var credential api.Credential
	if err := json.Unmarshal([]byte(out), &credential); err != nil || code != 0 || credential.Lease == "" {
		t.Errorf("request: %d: %s: %v", code, errs, err)
	}
	out, errs, code = w.cli(bin, "exec", "tickets-api", "--scope", "tickets:read", "--", "sh", "-c", `test -s "$BROKER_CREDENTIAL_FILE" && test -z "$BROKER_ACCESS_TOKEN" && echo $BROKER_LEASE && exit 9`)
	if code != 9 || !regexp.MustCompile(`^lse_[0-9a-v]{26}\n$`).MatchString(out) {
		t.Fatalf("exec: %d: %s%s", code, out, errs)
	}
	list, _, _ := w.cli(bin, "leases", "-o", "json")
	var leases struct{ Leases []api.Lease }
	if err := json.Unmarshal([]byte(list), &leases); err != nil {
		t.Fatalf("leases: %v: %s", err, list)
	}
	status := map[string]string{}
	for _, l := range leases.Leases {
		status[l.ID] = string(l.Status)
	}
	if status[strings.TrimSpace(out)] != "revoked" || status[credential.Lease] != "active" {
		t.Errorf("got %v, want the lease of exec revoked and the earlier one active", status)
	}
}

// testNotEntitled is denied by policy, on the command line and over HTTP. The log
// has a record of each denial.
func testNotEntitled(t *testing.T, w *world, src *workloadapi.X509Source) {
	bin := copyBinary(t, w.bin, "stranger")
	w.spire.register(t, "/stranger", bin)
	eventually(t, "the stranger's refusal", time.Minute, func() error {
		_, errs, code := w.cli(bin, "request", "tickets-api", "--scope", "tickets:read")
		if code != 3 || !strings.Contains(errs, "denied") {
			return fmt.Errorf("%d: %s", code, errs)
		}
		return nil
	})
	token := w.spire.workload(t, "/stranger/by/http", w.url).Token
	_, err := w.bearerClient(t, src, token).Ask(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: reading.Scopes})
	if err := wantRefusal(err, api.Denied, http.StatusForbidden); err != nil {
		t.Error(err)
	}
	// The token endpoint does not reveal that an entitlement exists to a caller who
	// may not request it.
	_, err = w.anonymousClient(t, src).Exchange(t.Context(), withSubject(token))
	if err := wantOAuthError(err, "invalid_target", api.Denied); err != nil {
		t.Errorf("at the token endpoint: %v", err)
	}
	denials := w.records(t, "--kind", "request.denied")
	for _, id := range []string{"spiffe://acme.test/stranger", "spiffe://acme.test/stranger/by/http"} {
		if !strings.Contains(denials, id) {
			t.Errorf("the denial of %s is not in the log:\n%s", id, denials)
		}
	}
}

// testAgentDown stops SPIRE's agent. The broker continues with the bundles that it
// has. When the agent is back, the broker receives changes again: it accepts a
// token of a new JWT authority, which it can only know from the agent.
func testAgentDown(t *testing.T, w *world, src *workloadapi.X509Source) {
	old := jwtSVID(t, w.spire, w.url)
	w.spire.agent.stop()
	if _, err := w.mtlsClient(t, src).Exchange(t.Context(), reading); err != nil {
		t.Errorf("mTLS without the agent: %v", err)
	}
	if _, err := w.anonymousClient(t, src).Exchange(t.Context(), withSubject(old.Marshal())); err != nil {
		t.Errorf("a JWT-SVID without the agent: %v", err)
	}
	if err := w.ready(); err != nil {
		t.Errorf("the broker has valid bundles and is not ready: %v", err)
	}
	w.spire.startAgent(t)
	w.spire.rotate(t, "jwt")
	acceptedByNew(t, w, src, old.Marshal())
	if err := w.ready(); err != nil {
		t.Error(err)
	}
}

// testKilled kills the broker after the 500th answer in a stream of calls. After a
// restart, every lease that was answered is active and in the log.
func testKilled(t *testing.T, w *world, src *workloadapi.X509Source) {
	const callers = 8
	c := w.mtlsClient(t, src)
	checkStatuses := leaveListedTokens(t, w, src)
	answered := make(chan string)
	for range callers {
		go func() {
			for {
				token, err := c.Exchange(t.Context(), reading)
				if err != nil {
					answered <- ""
					return
				}
				answered <- token.Lease
			}
		}()
	}
	var leases []string
	for ended := 0; ended < callers; {
		switch lease := <-answered; lease {
		case "":
			ended++
		default:
			if leases = append(leases, lease); len(leases) == 500 {
				w.broker.kill()
			}
		}
	}
	if len(leases) < 500 {
		t.Fatalf("%d calls were answered before the kill", len(leases))
	}
	w.start(t)
	checkStatuses()
	for _, lease := range leases {
		if l, err := c.Lease(t.Context(), lease); err != nil || l.Status != api.LeaseActive {
			t.Fatalf("lease %s was answered and is %+v, %v", lease, l, err)
		}
	}
	if n := bytes.Count([]byte(w.records(t, "--kind", "lease.issued")), []byte("\n")); n < len(leases) {
		t.Errorf("%d leases were answered, %d are in the log", len(leases), n)
	}
}
