package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/oauth2/google/externalaccount"

	"accessbroker.internal/api"
)

// OAuth libraries of other projects get tokens without changes.

func TestClientCredentialsLibrary(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	tests := []struct {
		name   string
		config clientcredentials.Config
	}{
		{"assertion", clientcredentials.Config{EndpointParams: url.Values{"client_assertion": {agent}, "client_assertion_type": {api.AssertionTypeJWT}}, AuthStyle: oauth2.AuthStyleInParams}},
		{"assertion and client_id", clientcredentials.Config{ClientID: agent, EndpointParams: url.Values{"client_assertion": {agent}, "client_assertion_type": {api.AssertionTypeJWT}}, AuthStyle: oauth2.AuthStyleInParams}},
		{"detected authentication style", clientcredentials.Config{ClientID: agent, EndpointParams: url.Values{"client_assertion": {agent}, "client_assertion_type": {api.AssertionTypeJWT}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.config.TokenURL = w.url + "/oauth2/token"
			test.config.Scopes = []string{"tickets:read"}
			test.config.EndpointParams.Set("audience", "tickets")
			ctx := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: w.spec})
			token, err := test.config.Token(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if !token.Valid() || token.Type() != "Bearer" || token.Extra("scope") != "tickets:read" {
				t.Errorf("got %+v", token)
			}
		})
	}
}

type ownSVID string

func (s ownSVID) SubjectToken(context.Context, externalaccount.SupplierOptions) (string, error) {
	return string(s), nil
}

func TestTokenExchangeLibrary(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: w.spec})
	source, err := externalaccount.NewTokenSource(ctx, externalaccount.Config{
		Audience: "tickets", SubjectTokenType: api.TokenTypeJWT, TokenURL: w.url + "/oauth2/token",
		Scopes: []string{"tickets:read"}, SubjectTokenSupplier: ownSVID(agent),
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := source.Token()
	if err != nil || !token.Valid() || token.Type() != "Bearer" {
		t.Errorf("got %+v, %v", token, err)
	}
}

func TestTokenEndpointErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const exchange = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token_type=urn:ietf:params:oauth:token-type:jwt&subject_token=" + agent
	tests := []struct {
		name, body string
		status     int
		error      string
		code       api.Code
	}{
		{"no grant", "", 400, "invalid_request", api.InvalidRequest},
		{"another grant", "grant_type=password&username=a&password=b", 400, "unsupported_grant_type", api.UnsupportedGrantType},
		{"bad subject_token", strings.Replace(exchange, agent, "nonsense", 1) + "&audience=tickets", 400, "invalid_request", api.Unauthenticated},
		{"no client", "grant_type=client_credentials&audience=tickets", 401, "invalid_client", api.Unauthenticated},
		{"bad assertion", "grant_type=client_credentials&audience=tickets&client_assertion=x&client_assertion_type=" + api.AssertionTypeJWT, 400, "invalid_client", api.Unauthenticated},
		{"another client_id", "grant_type=client_credentials&audience=tickets&client_assertion=" + agent + "&client_assertion_type=" + api.AssertionTypeJWT + "&client_id=" + other, 400, "invalid_client", api.Unauthenticated},
		{"another client_id than the subject", exchange + "&client_id=" + other + "&audience=tickets&scope=tickets:read", 400, "invalid_request", api.Unauthenticated},
		{"bad actor", exchange + "&actor_token=x&actor_token_type=" + api.TokenTypeJWT, 400, "invalid_request", api.TwoIdentities},
		{"another actor", exchange + "&actor_token=" + other + "&actor_token_type=" + api.TokenTypeJWT, 400, "invalid_request", api.TwoIdentities},
		{"a person without a provider", strings.Replace(exchange, ":jwt&", ":id-jag&", 1) + "&audience=tickets&actor_token=" + agent + "&actor_token_type=" + api.TokenTypeJWT, 400, "invalid_request", api.ForeignSubject},
		{"a person by JWT bearer", "grant_type=" + api.GrantJWTBearer + "&assertion=x&audience=tickets&client_assertion=" + agent + "&client_assertion_type=" + api.AssertionTypeJWT, 400, "invalid_grant", api.ForeignSubject},
		{"a person, no client", "grant_type=" + api.GrantJWTBearer + "&assertion=x&audience=tickets", 401, "invalid_client", api.Unauthenticated},
		{"a person by name", exchange + "&audience=tickets&scope=tickets:read&login_hint=ana@acme.test", 400, "invalid_request", api.InvalidRequest},
		{"assertion with another grant", exchange + "&audience=tickets&scope=tickets:read&assertion=x", 400, "invalid_request", api.InvalidRequest},
		{"no target", exchange + "&scope=tickets:read", 400, "invalid_request", api.InvalidRequest},
		{"unknown target", exchange + "&audience=nope&scope=a", 400, "invalid_target", api.Denied},
		{"entitlement without tokens", exchange + "&audience=not-tokens&scope=read", 400, "invalid_target", api.InvalidTarget},
		{"entitlement without tokens, not permitted", strings.Replace(exchange, agent, other, 1) + "&audience=not-tokens&scope=read", 400, "invalid_target", api.Denied},
		{"another resource", exchange + "&audience=tickets&resource=https://other.test&scope=tickets:read", 400, "invalid_target", api.InvalidTarget},
		{"another resource, not permitted", strings.Replace(exchange, agent, other, 1) + "&audience=tickets&resource=https://other.test&scope=tickets:read", 400, "invalid_target", api.Denied},
		{"two targets", exchange + "&audience=tickets&audience=guarded&scope=read", 400, "invalid_target", api.InvalidTarget},
		{"unpermitted", strings.Replace(exchange, agent, other, 1) + "&audience=tickets&scope=tickets:read", 400, "invalid_target", api.Denied},
		{"too many scopes", exchange + "&audience=tickets&scope=tickets:read+tickets:close", 400, "invalid_scope", api.Denied},
		{"unknown scope", exchange + "&audience=tickets&scope=tickets:burn", 400, "invalid_scope", api.InvalidScope},
		{"tab between scopes", exchange + "&audience=tickets&scope=tickets:read%09tickets:read", 400, "invalid_scope", api.InvalidScope},
		{"newline between scopes", exchange + "&audience=tickets&scope=tickets:read%0Atickets:read", 400, "invalid_scope", api.InvalidScope},
		{"non-breaking space between scopes", exchange + "&audience=tickets&scope=tickets:read%C2%A0tickets:read", 400, "invalid_scope", api.InvalidScope},
		{"comma between scopes", exchange + "&audience=tickets&scope=tickets:read,tickets:read", 400, "invalid_scope", api.InvalidScope},
		{"two spaces between scopes", exchange + "&audience=tickets&scope=tickets:read++tickets:close", 400, "invalid_scope", api.InvalidScope},
		{"space before the scope", exchange + "&audience=tickets&scope=+tickets:read", 400, "invalid_scope", api.InvalidScope},
		{"newline after the scope", exchange + "&audience=tickets&scope=tickets:read%0A", 400, "invalid_scope", api.InvalidScope},
		{"only a space as scope", exchange + "&audience=tickets&scope=+", 400, "invalid_scope", api.InvalidScope},
		{"URL as audience", exchange + "&audience=https://tickets.acme.test&scope=tickets:read", 400, "invalid_target", api.InvalidTarget},
		{"URN as audience", exchange + "&audience=urn:acme:tickets&scope=tickets:read", 400, "invalid_target", api.InvalidTarget},
		{"name as resource", exchange + "&resource=tickets&scope=tickets:read", 400, "invalid_target", api.InvalidTarget},
		{"no scope", exchange + "&audience=tickets", 400, "invalid_scope", api.InvalidScope},
		{"repeated", exchange + "&audience=tickets&scope=tickets:read&scope=tickets:read", 400, "invalid_request", api.InvalidRequest},
		{"ttl zero", exchange + "&audience=tickets&scope=tickets:read&ttl=0s", 400, "invalid_request", api.InvalidTTL},
		{"ttl too long", exchange + "&audience=tickets&scope=tickets:read&ttl=24h", 400, "invalid_request", api.InvalidTTL},
		{"another token type", exchange + "&audience=tickets&scope=tickets:read&requested_token_type=urn:ietf:params:oauth:token-type:saml2", 400, "invalid_request", api.InvalidRequest},
		{"pending", exchange + "&audience=guarded&scope=read", 400, "authorization_pending", api.Pending},
		{"no such request", exchange + "&request_id=req_x", 400, "invalid_request", api.NotFound},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			resp := w.do("POST", "/oauth2/token", "application/x-www-form-urlencoded", test.body)
			text := w.body(resp)
			var e api.OAuthError
			if err := json.Unmarshal(text, &e); err != nil || resp.StatusCode != test.status || e.Error != test.error || e.Code != test.code || e.Description == "" {
				t.Errorf("got %d %s", resp.StatusCode, text)
			}
			if got := resp.Header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control: %s", got)
			}
		})
	}
}

// A target in the wrong parameter is answered with the right one.
func TestTargetHint(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for sent, want := range map[string]string{
		"audience=https://tickets.acme.test": "use resource",
		"audience=api://tickets":             "use resource",
		"resource=tickets":                   "use audience",
	} {
		resp := w.do("POST", "/oauth2/token", "application/x-www-form-urlencoded", "grant_type=client_credentials&scope=tickets:read&"+sent, "Authorization", "Bearer "+agent)
		if text := w.body(resp); resp.StatusCode != 400 || !strings.Contains(string(text), want) {
			t.Errorf("%s: got %s %s", sent, resp.Status, text)
		}
	}
}

func TestTwoProofs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const body = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token_type=urn:ietf:params:oauth:token-type:jwt&audience=tickets&scope=tickets:read&subject_token=" + agent
	for bearer, want := range map[string]int{agent: 200, other: 400} {
		resp := w.do("POST", "/oauth2/token", "application/x-www-form-urlencoded", body, "Authorization", "Bearer "+bearer)
		if resp.StatusCode != want {
			t.Errorf("the agent's subject_token with the bearer token of %s: got %s", bearer, resp.Status)
		}
	}
}

// Clients poll for an approval with request_id.
func TestTokenPolling(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ctx, me := t.Context(), w.as(agent)
	req := api.TokenRequest{SubjectToken: agent, Audience: "guarded", Scopes: []string{"read"}}
	_, err := me.Exchange(ctx, req)
	var pending *api.Error
	if !errors.As(err, &pending) || pending.OAuth != "authorization_pending" || pending.RequestID == "" || pending.RetryAfter == 0 {
		t.Fatalf("got %#v", err)
	}
	poll := api.TokenRequest{SubjectToken: agent, RequestID: pending.RequestID}
	if _, err := me.Exchange(ctx, poll); !errors.Is(err, api.Pending) {
		t.Errorf("polled: %v", err)
	}
	poll.Audience, poll.Scopes = "guarded", []string{"read"}
	if _, err := me.Exchange(ctx, poll); !errors.Is(err, api.Pending) {
		t.Errorf("polled with the same target: %v", err)
	}
	poll.Audience = "tickets"
	if _, err := me.Exchange(ctx, poll); !errors.Is(err, api.InvalidTarget) {
		t.Errorf("polled with another target: %v", err)
	}
	poll.Audience, poll.Scopes = "", []string{"write"}
	if _, err := me.Exchange(ctx, poll); !errors.Is(err, api.InvalidScope) {
		t.Errorf("polled with other scopes: %v", err)
	}
	if _, err := me.Exchange(ctx, api.TokenRequest{SubjectToken: agent, RequestID: pending.RequestID, TTL: 1e9}); !errors.Is(err, api.InvalidRequest) {
		t.Errorf("polled with a ttl: %v", err)
	}
	if _, err := w.as(other).Exchange(ctx, api.TokenRequest{SubjectToken: other, RequestID: pending.RequestID}); !errors.Is(err, api.NotFound) {
		t.Errorf("polled by another identity: %v", err)
	}
	if _, err := me.Withdraw(ctx, pending.RequestID); err != nil {
		t.Fatal(err)
	}
	if _, err := me.Exchange(ctx, api.TokenRequest{SubjectToken: agent, RequestID: pending.RequestID}); !errors.Is(err, api.NotPending) {
		t.Errorf("polled after the withdrawal: %v", err)
	}
	// A request for something other than a token is collected on /v1 only.
	r, err := me.Ask(ctx, api.Ask{Entitlement: "not-tokens", Scopes: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := me.Exchange(ctx, api.TokenRequest{SubjectToken: agent, RequestID: r.ID}); !errors.Is(err, api.InvalidTarget) {
		t.Errorf("collected a request that is not for a token: %v", err)
	}
}

// The path of the issuer follows the well-known path (RFC 8414, section 3.1).
func TestIssuerWithPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.ExternalURL = "https://acme.test/broker/" })
	for _, path := range []string{
		"/.well-known/oauth-authorization-server/broker", "/broker/.well-known/openid-configuration",
		"/.well-known/openid-configuration", "/broker/healthz", "/healthz",
	} {
		body := w.get(t, path)
		if strings.Contains(path, "well-known") && !strings.Contains(body, `"issuer":"https://acme.test/broker"`) {
			t.Errorf("%s: %s", path, body)
		}
	}
}
