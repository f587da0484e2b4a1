package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"accessbroker.internal/api"
	"accessbroker.internal/e2e/servers"
	"accessbroker.internal/verify"
)

// A resource server with the wrapper of package verify, and one in JavaScript that shares no
// code with the broker, accept its tokens and refuse revoked ones.
func testResourceServers(t *testing.T, w *world, src *workloadapi.X509Source) {
	holder := w.mtlsClient(t, src)
	listed := api.TokenRequest{Audience: "listed-api", Scopes: []string{"listed:read"}}
	token, err := holder.Exchange(t.Context(), listed)
	if err != nil {
		t.Fatal(err)
	}
	server := &resourceServer{t, w, src}
	tickets := w.spire.workload(t, "/tickets", w.url).Token // its entry may take seconds to arrive
	byList := server.start(verify.Config{RequireStatus: true})
	asking := server.start(verify.Config{Introspection: &verify.Introspection{
		Authorize: func(context.Context) (string, error) { return tickets, nil },
	}})
	for name, url := range map[string]string{"status list": byList, "introspection": asking} {
		if status, challenge := server.call(url, string(token.AccessToken)); status != http.StatusOK {
			t.Errorf("%s: a valid token: got %d %s", name, status, challenge)
		}
		if status, challenge := server.call(url, ""); status != http.StatusUnauthorized || !strings.HasPrefix(challenge, "Bearer") {
			t.Errorf("%s: no token: got %d %s", name, status, challenge)
		}
	}
	server.checkInJavaScript(string(token.AccessToken), 0)

	if err := holder.RevokeToken(t.Context(), token.AccessToken); err != nil {
		t.Fatal(err)
	}
	if status, challenge := server.call(asking, string(token.AccessToken)); status != http.StatusUnauthorized || !strings.Contains(challenge, "invalid_token") {
		t.Errorf("introspection: a revoked token: got %d %s, want 401 at once", status, challenge)
	}
	eventually(t, "the list's ttl", time.Minute, func() error {
		if status, challenge := server.call(byList, string(token.AccessToken)); status != http.StatusUnauthorized {
			return fmt.Errorf("a revoked token: %d %s", status, challenge)
		}
		return nil
	})
	server.checkInJavaScript(string(token.AccessToken), 1)
	server.checkBound(holder)
}

// A resourceServer serves calls over TLS with X.509-SVIDs.
type resourceServer struct {
	t   *testing.T
	w   *world
	src *workloadapi.X509Source
}

// start starts a service for the tokens of an audience, and returns its URL.
func (s *resourceServer) start(cfg verify.Config) string {
	s.t.Helper()
	cfg.Issuer, cfg.Client = s.w.url, s.w.anonymousClient(s.t, s.src).HTTP
	if cfg.Audience == "" {
		cfg.Audience = ticketsAudience
	}
	v, err := verify.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	scope := "listed:read"
	if cfg.Audience != ticketsAudience {
		scope = "bound:read"
	}
	handler := v.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _ := verify.FromContext(r.Context())
		_, _ = fmt.Fprintln(w, c.Subject)
	}), scope)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	s.t.Cleanup(func() { _ = server.Close() })
	go func() {
		_ = server.Serve(tls.NewListener(listener, tlsconfig.MTLSServerConfig(s.src, s.src, tlsconfig.AuthorizeAny())))
	}()
	return "https://" + listener.Addr().String()
}

// call calls a service, and returns the status and the first challenge.
func (s *resourceServer) call(url, token string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client(s.t, tlsconfig.MTLSClientConfig(s.src, s.src, tlsconfig.AuthorizeAny()), false).Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("WWW-Authenticate")
}

// checkBound calls a service with a token that is bound to the certificate of the caller.
func (s *resourceServer) checkBound(holder *api.Client) {
	s.t.Helper()
	token, err := holder.Exchange(s.t.Context(), api.TokenRequest{Audience: "bound-api", Scopes: []string{"bound:read"}})
	if err != nil {
		s.t.Fatal(err)
	}
	url := s.start(verify.Config{Audience: "https://bound.acme.test", RequireBinding: true, RotatedSVIDs: true})
	if status, challenge := s.call(url, string(token.AccessToken)); status != http.StatusOK {
		s.t.Errorf("a bound token over the certificate: got %d %s", status, challenge)
	}
	v, err := verify.New(verify.Config{Issuer: s.w.url, Audience: "https://bound.acme.test", Client: s.w.anonymousClient(s.t, s.src).HTTP})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := v.Token(s.t.Context(), string(token.AccessToken), verify.Presentation{}); err == nil {
		s.t.Error("a bound token without the certificate was accepted")
	}
}

// leaveListedTokens issues tokens with places in a status list and revokes one. The returned
// function checks their status, also after the broker was killed.
func leaveListedTokens(t *testing.T, w *world, src *workloadapi.X509Source) (check func()) {
	t.Helper()
	holder := w.mtlsClient(t, src)
	issue := func() api.Token {
		t.Helper()
		token, err := holder.Exchange(t.Context(), api.TokenRequest{Audience: "listed-api", Scopes: []string{"listed:read"}})
		if err != nil {
			t.Fatal(err)
		}
		return token.AccessToken
	}
	kept, revoked := issue(), issue()
	if err := holder.RevokeToken(t.Context(), revoked); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		v, err := verify.New(verify.Config{Issuer: w.url, Audience: ticketsAudience, Client: w.anonymousClient(t, src).HTTP, RequireStatus: true})
		if err != nil {
			t.Fatal(err)
		}
		for name, token := range map[string]api.Token{"kept": kept, "new": issue()} {
			if _, err := v.Token(t.Context(), string(token), verify.Presentation{}); err != nil {
				t.Errorf("the %s token: %v", name, err)
			}
		}
		if _, err := v.Token(t.Context(), string(revoked), verify.Presentation{}); !errors.Is(err, verify.ErrInvalidToken) {
			t.Errorf("the revoked token: got %v", err)
		}
	}
}

// checkInJavaScript has jose verify a token and read its status.
func (s *resourceServer) checkInJavaScript(token string, status int) {
	s.t.Helper()
	modules, err := servers.Modules("resource")
	if err != nil {
		s.t.Fatal(err)
	}
	dir := s.t.TempDir()
	text, err := os.ReadFile(filepath.Join("clients", "resource", "server.mjs"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "server.mjs"), text, 0o600)
	}
	if err == nil {
		err = os.Symlink(modules, filepath.Join(dir, "node_modules"))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.CommandContext(s.t.Context(), installed(s.t, "node"), filepath.Join(dir, "server.mjs"), s.w.url, ticketsAudience)
	// The broker's certificate is an X.509-SVID, which has no host name.
	cmd.Env = append(os.Environ(), "TOKEN="+token, "NODE_TLS_REJECT_UNAUTHORIZED=0", "NODE_NO_WARNINGS=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("the resource server in JavaScript: %v\n%s%s", err, out.String(), errs.String())
	}
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		s.t.Fatal(err)
	}
	want := map[string]any{
		"subject": "spiffe://acme.test/agent/triage", "scope": "listed:read", "type": "application/statuslist+jwt", "cors": "*",
		"size": 1048576, "listed": true, "status": status,
	}
	if string(mustJSON(s.t, got)) != string(mustJSON(s.t, want)) {
		s.t.Errorf("got %v, want %v", got, want)
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
