package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"accessbroker.internal/api"
	"accessbroker.internal/broker/session"
)

// takes puts a session into the browser.
func (b *browser) takes(token session.Token) {
	b.t.Helper()
	at, err := url.Parse(b.base)
	if err != nil {
		b.t.Fatal(err)
	}
	b.client.Jar.SetCookies(at, []*http.Cookie{{Name: sessionCookie, Value: token.Reveal(), Path: "/", Secure: true}})
}

// get makes a call of a route of the pages, whatever its method.
func (b *browser) get(rt route, header ...string) *http.Response {
	b.t.Helper()
	path := strings.NewReplacer("{$}", "", "{id}", "req_0", "{name}", "guarded", "{index}", "0", "{provider}", "login", "{file}", "none").Replace(rt.path)
	if rt.path == "/ui/terminal" {
		path += "?port=50000&state=s&challenge=" + strings.Repeat("A", 43)
	}
	req, err := http.NewRequestWithContext(b.t.Context(), rt.method, b.base+path, strings.NewReader(""))
	if err != nil {
		b.t.Fatal(err)
	}
	if rt.method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp
}

// Whatever a page answers, to whomever: it runs no script but ours, shows
// itself in no frame, is stored nowhere, and tells nobody where it is.
func TestHeadersOfEveryPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	for _, somebody := range []bool{false, true} {
		b := newBrowser(t, w)
		for _, rt := range pages {
			if somebody && rt.path == "/ui/events" {
				continue // it goes on for ever
			}
			if somebody {
				b.takes(w.session(t, "login/ben"))
			}
			resp := b.get(rt)
			is := func(name, want string) {
				t.Helper()
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s %s, logged in %t, answers %d with %s: %q", rt.method, rt.path, somebody, resp.StatusCode, name, got)
				}
			}
			is("X-Content-Type-Options", "nosniff")
			is("Referrer-Policy", "no-referrer")
			is("Cache-Control", "no-store")
			is("Cross-Origin-Opener-Policy", "same-origin")
			is("Strict-Transport-Security", "max-age=31536000")
			policy := map[string]string{}
			for directive := range strings.SplitSeq(resp.Header.Get("Content-Security-Policy"), ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(directive), " ")
				policy[name] = value
			}
			for name, want := range map[string]string{
				"default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self'", "connect-src": "'self'", "frame-ancestors": "'none'", "base-uri": "'none'", "form-action": "'self'",
			} {
				if somebody && rt.method == http.MethodGet && rt.path == "/ui/terminal" && name == "form-action" {
					want = "'self' http://127.0.0.1:50000" // where the form leads
				}
				if policy[name] != want {
					t.Errorf("%s %s, logged in %t: %s %q, want %q", rt.method, rt.path, somebody, name, policy[name], want)
				}
			}
			if len(policy) != 8 {
				t.Errorf("%s %s: the policy says more: %v", rt.method, rt.path, policy)
			}
		}
	}
}

// Nothing that another site makes a browser send is taken, on any page.
func TestCrossOriginOnEveryPage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	for _, rt := range pages {
		if rt.method == http.MethodGet {
			continue
		}
		for _, header := range [][]string{{"Origin", "https://evil.test"}, {"Origin", "null"}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}} {
			b.takes(w.session(t, "login/ben"))
			if resp := b.get(rt, header...); resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s %s with %v: %d", rt.method, rt.path, header, resp.StatusCode)
			}
		}
	}
}

// cookies gives what an answer sets, as browsers read it.
func (b *browser) cookies(method, path string) map[string]*http.Cookie {
	b.t.Helper()
	all := map[string]*http.Cookie{}
	for _, c := range b.get(route{method: method, path: path}, "Origin", b.base).Cookies() {
		all[c.Name] = c
	}
	return all
}

// Cookies are this host's alone (RFC 6265bis, section 4.1.3.2), no script's, and
// no other site's to send.
func TestCookies(t *testing.T) {
	t.Parallel()
	b := newBrowser(t, newWorld(t, withPeople))
	begun := b.cookies(http.MethodGet, "/ui/login?provider=login")
	done := b.cookies(http.MethodGet, "/ui/login/callback?state=state-1&code=login/ben")
	out := b.cookies(http.MethodPost, "/ui/logout")
	for when, c := range map[string]*http.Cookie{
		"a login begins": begun[loginCookie], "its end takes it away": done[loginCookie], "a session begins": done[sessionCookie], "logging out takes it away": out[sessionCookie],
	} {
		if c == nil || !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode {
			t.Errorf("%s: %v", when, c)
			continue
		}
		if gone := strings.HasSuffix(when, "away"); gone != (c.MaxAge < 0 && c.Value == "") || !gone && c.MaxAge <= 0 {
			t.Errorf("%s: it lasts %d s with %q", when, c.MaxAge, c.Value)
		}
	}
	if value := begun[loginCookie].Value; strings.Contains(value, "state-1") || strings.Contains(value, encodeBase64URL([]byte("state-1"))) {
		t.Error("the state of a login is readable")
	}
}

// However the link to the login was made, it ends on a page of ours.
func TestNoOpenRedirect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	for _, next := range []string{
		"//evil.test", "//evil.test/ui/", `/\evil.test`, `\\evil.test`, "https:evil.test", "https://evil.test/ui/", "http:/evil.test/ui/", "///evil.test/ui/",
		"/ui//evil.test", "/ui/../../evil.test", "/ui/%2e%2e//evil.test", "/%09/evil.test", "/\t/evil.test", "javascript:alert(1)", "data:text/html,x", "ui/", "@evil.test/ui/", "https://broker.acme.test@evil.test/ui/",
	} {
		w.limits.anonymous = newAdmission(anonymousPerSecond, anonymousAtOnce)
		if where := b.logIn("login/ben", next); where != "/ui/" {
			t.Errorf("next=%q leads to %q", next, where)
		}
	}
}

// Tokens that don't hold shut nobody out whose session does.
func TestOthersAtTheAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	token := w.session(t, "login/ben")
	limited := 0
	w.holdClocks()
	for i := range 2 * failuresBurst {
		resp := w.do(http.MethodGet, "/v1/whoami", "", "", "Authorization", fmt.Sprintf("Bearer %s%042dA", session.TokenPrefix, i))
		switch resp.StatusCode {
		case http.StatusTooManyRequests:
			limited++
		case http.StatusUnauthorized:
		default:
			t.Fatalf("a session that is none: %d", resp.StatusCode)
		}
	}
	if limited == 0 {
		t.Error("nothing bounds tokens that do not hold")
	}
	if who, err := w.as(token.Reveal()).WhoAmI(t.Context()); err != nil || who.ID != "login/ben" {
		t.Errorf("a session that holds: %+v, %v", who, err)
	}
}

// A provider that signs everybody out is heard to the end, whatever others at
// its address send.
func TestManyLogouts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	for range 2 * failuresBurst {
		if status, _, _ := b.visit(http.MethodPost, "/ui/login/login/logged-out", "logout_token=forged", "Origin", ""); status != http.StatusBadRequest {
			t.Fatalf("a forged logout token: %d", status)
		}
	}
	for i := range 100 {
		id := fmt.Sprintf("p%d", i)
		token := w.session(t, "login/"+id)
		if status, _, _ := b.visit(http.MethodPost, "/ui/login/login/logged-out", "logout_token=logout+"+id, "Origin", ""); status != http.StatusOK {
			t.Fatalf("logout %d: %d", i, status)
		}
		if _, err := w.as(token.Reveal()).WhoAmI(t.Context()); !errors.Is(err, api.Unauthenticated) {
			t.Fatalf("session %d: %v", i, err)
		}
	}
}

// Codes that people type are short: nobody may try many.
func TestGuessingDeviceCodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	b := newBrowser(t, w)
	b.takes(w.session(t, "login/eve"))
	w.holdClocks()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		w.limits.anonymous.callers = newLRU[string, *callerState](maxRemembered)
		limited := false
		for range 2 * anonymousPerSecond {
			status, _, _ := b.visit(method, "/ui/device?code=BCDF-GHJK", formOf("code", "BCDF-GHJK", "decision", "allow"))
			limited = limited || status == http.StatusTooManyRequests
		}
		if !limited {
			t.Errorf("%s: nothing bounds it", method)
		}
	}
}
