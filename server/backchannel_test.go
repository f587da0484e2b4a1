package server

import (
	"context"
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// The backchannel endpoint answers with the errors and statuses of CIBA, section 13.
func TestBackchannelErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	const hint = "login_hint=" + agent + "&"
	const ask = hint + "audience=guarded&scope=read"
	tests := []struct {
		name, form string
		status     int
		error      string
	}{
		{"no hint", "audience=guarded&scope=read", 400, "invalid_request"},
		{"two hints", ask + "&id_token_hint=x", 400, "invalid_request"},
		{"three hints", ask + "&id_token_hint=x&login_hint_token=y", 400, "invalid_request"},
		{"an empty hint", "login_hint=&audience=guarded&scope=read", 400, "invalid_request"},
		{"a repeated hint", ask + "&login_hint=" + agent, 400, "invalid_request"},
		{"a person's name", "login_hint=login/ana&audience=guarded&scope=read", 400, "unknown_user_id"},
		{"a mail address", "login_hint=ana@acme.test&audience=guarded&scope=read", 400, "unknown_user_id"},
		{"another workload", "login_hint=" + other + "&audience=guarded&scope=read", 400, "unknown_user_id"},
		{"an ID token", "id_token_hint=eyJ.x.y&audience=guarded&scope=read", 400, "unknown_user_id"},
		{"a token that proves nothing", "login_hint_token=eyJ.x.y&audience=guarded&scope=read", 400, "unknown_user_id"},
		{"a user code", ask + "&user_code=1234", 400, "invalid_request"},
		{"a signed request", ask + "&request=eyJ.x.y", 400, "invalid_request"},
		{"no target", hint + "scope=read", 400, "invalid_request"},
		{"unknown scope", hint + "audience=guarded&scope=openid+burn", 400, "invalid_scope"},
		{"no scope besides openid", hint + "audience=guarded&scope=openid", 400, "invalid_scope"},
		{"unknown entitlement", hint + "audience=nothing&scope=read", 403, "access_denied"},
		{"not permitted", hint + "audience=tickets&scope=tickets:close", 400, "invalid_scope"},
		{"zero expiry", ask + "&requested_expiry=0", 400, "invalid_request"},
		{"negative expiry", ask + "&requested_expiry=-1", 400, "invalid_request"},
		{"signed expiry", ask + "&requested_expiry=%2B1", 400, "invalid_request"},
		{"fraction", ask + "&requested_expiry=1.5", 400, "invalid_request"},
		{"expiry that overflows", ask + "&requested_expiry=99999999999999999999", 400, "invalid_request"},
		{"long message", ask + "&binding_message=" + strings.Repeat("x", 10_000), 400, "invalid_binding_message"},
		{"reordered message", ask + "&binding_message=pay+%E2%80%AE0001", 400, "invalid_binding_message"},
		{"message of two lines", ask + "&binding_message=4711%0Aapproved", 400, "invalid_binding_message"},
		{"message with an escape", ask + "&binding_message=%1B%5B31m", 400, "invalid_binding_message"},
		{"another client_id", ask + "&client_id=" + other, 401, "invalid_client"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			wantError(t, test.name, w.oauth(agent, backchannelPath, test.form), test.status, test.error)
		})
	}
	wantError(t, "policy", w.oauth(other, backchannelPath, "login_hint="+other+"&audience=guarded&scope=read"), 403, "access_denied")
	for name, header := range map[string][]string{"no proof": nil, "an invalid assertion": {}} {
		form := ask
		if name == "an invalid assertion" {
			form += "&client_assertion=x&client_assertion_type=" + url.QueryEscape(api.AssertionTypeJWT)
		}
		resp := w.do("POST", backchannelPath, "application/x-www-form-urlencoded", form, header...)
		if text := w.body(resp); resp.StatusCode != 401 || !strings.Contains(string(text), `"invalid_client"`) {
			t.Errorf("%s: got %s %s, want 401 invalid_client", name, resp.Status, text)
		}
	}
}

// What the client sends reaches the request, and requested_expiry only shortens the wait.
func TestBackchannelRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	const ask = "login_hint=" + agent + "&resource=https://guarded.acme.test&scope=read+openid"
	a := w.oauth(agent, backchannelPath, ask+"&binding_message=%3Cb%3E4711%3C/b%3E&requested_expiry=120&justification=because&ticket=T-1&client_id="+agent)
	if a.status != 200 || a.started.Interval != 5 || a.started.ExpiresIn < 110 || a.started.ExpiresIn > 120 || a.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("got %d %s", a.status, a.text)
	}
	if code := string(a.started.AuthReqID); len(code) < 27 || strings.ContainsFunc(code, func(r rune) bool {
		return !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-_", r)
	}) {
		t.Errorf("got auth_req_id %q, want the alphabet of CIBA, section 7.3", code)
	}
	r := must[*api.Request](t)(w.as(agent).Request(t.Context(), a.started.RequestID))
	if r.BindingMessage != "<b>4711</b>" || r.Justification != "because" || r.Ticket != "T-1" || r.Entitlement != "guarded" || len(r.Scopes) != 1 || r.LapsesAt.Sub(r.CreatedAt).Seconds() != 120 {
		t.Errorf("got %+v", r)
	}
	if a := w.oauth(agent, backchannelPath, ask+"&ticket=T-2&requested_expiry=2000000000"); a.started.ExpiresIn < 3590 || a.started.ExpiresIn > 3600 {
		t.Errorf("got expires_in %d, want policy's hour", a.started.ExpiresIn)
	}
	// Policy needs no people: the first poll gets the token.
	a = w.oauth(agent, backchannelPath, "login_hint="+agent+"&audience=tickets&scope=openid+tickets:read&requested_expiry=60")
	if a.status != 200 || a.started.ExpiresIn > 60 {
		t.Errorf("got %d %s", a.status, a.text)
	}
	if got := waitingWays[1].poll(w, agent, string(a.started.AuthReqID)); got.status != 200 || got.Scope != "tickets:read" {
		t.Errorf("got %d %s, want a token", got.status, got.text)
	}
}

// A new authentication request is a new decision: a grant from which a token was collected
// does not answer it.
func TestBackchannelRequestsAreFresh(t *testing.T) {
	t.Parallel()
	w, way := newWorld(t, withPeople), waitingWays[1]
	first, request := way.begin(w, agent, "")
	w.vote(t, request, api.Approve)
	if a := way.poll(w, agent, first); a.status != 200 {
		t.Fatalf("got %d %s, want a token", a.status, a.text)
	}
	second, again := way.begin(w, agent, "")
	if again == request {
		t.Error("the request of the first was reused")
	}
	wantError(t, "the second", way.poll(w, agent, second), 400, "authorization_pending")
}

// The message is shown to approvers as the requester's words, never as markup.
func TestBindingMessageOnPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	_, request := waitingWays[1].begin(w, agent, "&binding_message="+url.QueryEscape("<script>alert(4711)</script> \u3164\u00a0"+`"onclick=x`))
	page := b.read("/ui/requests/" + request)
	if strings.Contains(page, "<script>alert") || !strings.Contains(page, "&lt;script&gt;alert(4711)&lt;/script&gt;") || !strings.Contains(page, "the message that identifies the action") {
		t.Errorf("the page does not show the message as text: %s", page)
	}
	if strings.Contains(page, "\u3164") {
		t.Error("an invisible character of the message is on the page")
	}
}

type expiredToken struct{}

func (expiredToken) Error() string { return "the ID-JAG has expired" }
func (expiredToken) Expired() bool { return true }
func (expiredToken) Unwrap() error { return broker.ErrForeignSubject }

// A login_hint_token is judged as a token of a person. What it does not prove names no one.
func TestBackchannelHintTokens(t *testing.T) {
	t.Parallel()
	var seen []broker.Method
	w := newWorld(t, func(c *Config) {
		withPeople(c)
		c.SubjectToken = func(_ context.Context, s broker.SubjectToken) (*broker.Delegation, error) {
			seen = append(seen, s.Method)
			if s.Actor.ID != agent || s.Resource != "https://guarded.acme.test" {
				t.Errorf("got the actor %s and the resource %s", s.Actor.ID, s.Resource)
			}
			switch {
			case strings.HasSuffix(s.Token, ".expired"):
				return nil, expiredToken{}
			case strings.HasSuffix(s.Token, ".down"):
				return nil, broker.ErrUnavailable
			}
			return nil, &broker.Refusal{Err: broker.ErrForeignSubject, Detail: "the token is for another actor"}
		}
	})
	header := func(typ string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"`+typ+`"}`)) + ".e30."
	}
	for _, test := range []struct {
		token  string
		method broker.Method
		status int
		error  string
	}{
		{header("oauth-id-jag+jwt") + "other", broker.MethodIDJAG, 400, "unknown_user_id"},
		{header("at+jwt") + "other", broker.MethodAccessToken, 400, "unknown_user_id"},
		{header("JWT") + "other", broker.MethodAccessToken, 400, "unknown_user_id"},
		{"no token", broker.MethodAccessToken, 400, "unknown_user_id"},
		{header("oauth-id-jag+jwt") + "expired", broker.MethodIDJAG, 400, "expired_login_hint_token"},
		{header("at+jwt") + "down", broker.MethodAccessToken, 503, "temporarily_unavailable"},
	} {
		seen = nil
		a := w.oauth(agent, backchannelPath, url.Values{"login_hint_token": {test.token}, "audience": {"guarded"}, "scope": {"read"}}.Encode())
		wantError(t, test.token, a, test.status, test.error)
		if len(seen) != 1 || seen[0] != test.method {
			t.Errorf("%s: judged as %v, want %s", test.token, seen, test.method)
		}
	}
}
